"""Rematerialization: the backward pass computes a layer's activations again instead of keeping
them.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

import keras

Tensor = keras.KerasTensor

if keras.backend.backend() == "jax":
    import jax
    import jax.numpy as jnp


def rematerialized(layer: keras.layers.Layer, *inputs: Tensor) -> Tensor:
    """Returns `layer(*inputs)`, of which a gradient keeps the inputs and nothing from inside.

    Only reverse-mode gradients are defined.

    Args:
        layer: a built layer that draws no random numbers and changes no state.
        *inputs: tensors of a float dtype whose first axis is the batch.

    Returns:
        The layer's output, one tensor whose first axis is the batch.
    """
    if keras.backend.backend() == "jax":
        return _rematerialized_on_jax(layer, *inputs)
    return keras.remat(layer)(*inputs)


def _rematerialized_on_jax(layer: keras.layers.Layer, *inputs: Tensor) -> Tensor:
    # What keras.remat makes of it, jax.checkpoint, saves nothing on a CPU: XLA is free to compute
    # everything twice before the backward pass begins. Here it has to wait for the gradient of the
    # output, on which the inputs of the second computation depend.
    def call(values: list, *inputs: Tensor) -> Tensor:
        trainable, fixed = values
        return layer.stateless_call(trainable, fixed, *inputs)[0]

    def forward(values: list, *inputs: Tensor) -> tuple[Tensor, tuple]:
        return call(values, *inputs), (values, inputs)

    def backward(kept: tuple, gradient: Tensor) -> tuple:
        values, inputs = kept
        first = gradient.reshape(len(gradient), -1)[:, 0]  # of each image, so that no two mix
        zero = jnp.where(jnp.isnan(first), first, 0.0)
        inputs = (x + zero.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype) for x in inputs)
        return jax.vjp(call, values, *inputs)[1](gradient)

    run = jax.custom_vjp(call)
    run.defvjp(forward, backward)
    groups = layer.trainable_variables, layer.non_trainable_variables
    return run([[v.value for v in group] for group in groups], *inputs)

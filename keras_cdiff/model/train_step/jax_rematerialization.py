"""Rematerialization on JAX, where keras.remat saves no memory on a CPU."""

import jax
import jax.numpy as jnp
import keras

from keras_cdiff.backbones.layers import REMATERIALIZATIONS

Tensor = keras.KerasTensor


def rematerialized(layer: keras.layers.Layer, *inputs: Tensor) -> Tensor:
    """Returns `layer(*inputs)`; see `keras_cdiff.backbones.layers.rematerialized`."""

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


REMATERIALIZATIONS["jax"] = rematerialized

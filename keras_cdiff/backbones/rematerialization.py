"""Rematerialization: the backward pass computes a layer's activations again instead of keeping
them.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from collections.abc import Callable

import keras

Tensor = keras.KerasTensor

# How a backend does it where keras.remat does not serve, by its name; `train_step` adds to it.
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {}


def rematerialized(layer: keras.layers.Layer, *inputs: Tensor) -> Tensor:
    """Returns `layer(*inputs)`, of which a gradient keeps the inputs and nothing from inside.

    Only reverse-mode gradients are defined.

    Args:
        layer: a built layer that draws no random numbers and changes no state.
        *inputs: tensors of a float dtype whose first axis is the batch.

    Returns:
        The layer's output, one tensor whose first axis is the batch.
    """
    implementation = IMPLEMENTATIONS.get(keras.backend.backend())
    return keras.remat(layer)(*inputs) if implementation is None else implementation(layer, *inputs)

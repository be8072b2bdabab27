"""Weights of networks as arrays: drawn alike on every backend, and told apart by a digest."""

import hashlib
import math
from collections.abc import Iterable, Sequence

import keras
import numpy as np


def draw_weights(networks: Iterable[keras.Model], seed: int) -> None:
    """Draws the kernels of networks by NumPy, so that they are the same on every backend.

    A kernel is uniform with variance 1 / (inputs of one output), so that a layer keeps the scale of
    what it gets. Scales of norms become 1, biases 0.

    Args:
        networks: built models, of convolutions, dense layers and norms.
        seed: a non-negative integer.
    """
    rng = np.random.default_rng(seed)
    for weight in (weight for network in networks for weight in network.weights):
        shape = tuple(weight.shape)
        if len(shape) < 2:
            weight.assign(np.full(shape, float(weight.name == "gamma"), np.float32))
        else:
            limit = np.float32(math.sqrt(3 / math.prod(shape[:-1])))
            weight.assign((2 * rng.random(shape, np.float32) - 1) * limit)


def arrays(network: keras.Model) -> list[np.ndarray]:
    """Returns the weights of a network as float32 arrays, in its own order."""
    return [
        np.asarray(keras.ops.convert_to_numpy(weight), np.float32) for weight in network.weights
    ]


def digest(what: str, weights: Sequence[np.ndarray]) -> str:
    """Returns the sha256 of a text and of weights: their order, shapes and values.

    Args:
        what: says what else than weights matters.
        weights: float32 arrays.
    """
    found = hashlib.sha256(f"{what}\n".encode())
    for values in weights:
        found.update(f"{values.shape}\n".encode())
        found.update(np.ascontiguousarray(values, "<f4").tobytes())
    return found.hexdigest()

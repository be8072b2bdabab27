"""What is done with arrays everywhere: telling them apart, and choosing some of them."""

import hashlib

import keras
import numpy as np


def fingerprint(
    what: str, *values: np.ndarray | str | bytes, **named: np.ndarray | str | bytes
) -> str:
    """Returns the SHA-256 of values, in 64 hex digits, the same on every backend.

    It covers names, shapes and content; numbers of 16 bits count as the float32 that they equal.

    Args:
        what: says what else matters, such as a kind.
        *values: arrays, texts or bytes, in their order.
        **named: the same by name.
    """
    sha = hashlib.sha256(f"{what}\n".encode())
    for name, value in [*(("", value) for value in values), *sorted(named.items())]:
        if isinstance(value, np.ndarray):
            short = value.dtype.itemsize <= 4 and value.dtype.kind not in "iub"
            array = np.ascontiguousarray(value, "<f4" if short else None)
            header = f"{value.shape}" if short else f"{value.shape} {value.dtype.str}"
            content = array.data
        else:
            header, content = f"{len(value)}", value.encode() if isinstance(value, str) else value
        sha.update(f"{name} {header}\n".lstrip().encode())
        sha.update(content)
    return sha.hexdigest()


def network_weights(*networks: keras.Model) -> list[np.ndarray]:
    """Returns the weights of networks as float32 arrays, in their order."""
    weights = [weight for network in networks for weight in network.weights]
    return [np.asarray(keras.ops.convert_to_numpy(weight), np.float32) for weight in weights]


def evenly_spaced(count: int, total: int) -> np.ndarray:
    """Returns `count` of `total` places: with the first and the last one at even distances, or each
    as often as any other if there are fewer places than that.
    """
    if count <= total:
        return np.linspace(0, total - 1, count).round().astype(int)
    return np.arange(count) * total // count

"""Checks of features, the same for every metric."""

import numpy as np


def block_rows(width: int, block_size: int = 2**23) -> int:
    """Returns how many rows of `width` numbers make a block of about `block_size` numbers."""
    return max(1, block_size // width)


def check_features(
    name: str, features: object, min_rows: int = 2, finite: bool = True
) -> np.ndarray:
    """Returns features as an array (N, D) of finite floats; a memory map stays one.

    Args:
        name: what to call the argument in messages.
        features: an array (N, D), or what NumPy can make one of.
        min_rows: least N.
        finite: whether to look at every number; otherwise see `check_finite`.

    Raises:
        ValueError: if it is no such array.
    """
    try:
        array = np.asarray(features)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be an array (N, D) of floating-point numbers. "
            f"Received: {name} of type {type(features).__name__} ({error})"
        ) from error
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"`{name}` must hold floating-point numbers: convert it, for instance with "
            f"astype('float32'). Received: {name}.dtype={array.dtype}"
        )
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(
            f"`{name}` must have the shape (N, D), one row an image. "
            f"Received: {name}.shape={array.shape}"
        )
    if len(array) < min_rows:
        raise ValueError(
            f"`{name}` must have at least {min_rows} rows, one an image: give more images. "
            f"Received: {name}.shape={array.shape}"
        )
    if finite:
        check_finite(name, array)
    return array


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises a ValueError that names the first row of an array (N, D) that is not finite."""
    rows = block_rows(array.shape[1])
    for start in range(0, len(array), rows):
        finite = np.isfinite(array[start : start + rows]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(
                f"`{name}` must be finite: look for a network that overflows or for damaged "
                f"images, and leave such rows out. Received: not finite in {name}[{row}]"
            )


def check_pair(real: object, generated: object) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets of features as arrays (N, D) and (M, D), or raises as `check_features`."""
    real, generated = check_features("real", real), check_features("generated", generated)
    check_widths(real.shape[1], generated.shape[1])
    return real, generated


def check_widths(real: int, generated: int) -> None:
    """Raises a ValueError unless two sets of features have the same width."""
    if real != generated:
        raise ValueError(
            "`real` and `generated` must have features of the same width: take both from the same "
            f"layer of the same extractor. Received: widths {real} and {generated}"
        )

"""Resampling of images by two, with a separable filter."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

Tensor = keras.KerasTensor


def downsample(x: Tensor, taps: Sequence[float] = (1, 1), padded: bool = False) -> Tensor:
    """Returns images at half the resolution: filtered by `taps` along both axes, every other pixel
    kept.

    Args:
        x: (B, H, W, C), H and W even.
        taps: symmetric filter of even length, scaled here to sum 1; (1, 1) is the mean of 2 x 2.
        padded: whether x already has the border that the filter reaches into; else it is black.
    """
    taps = np.divide(taps, np.sum(taps))
    reach = len(taps) // 2 - 1
    for axis in (1, 2):
        x = x if padded else _pad(x, axis, reach)
        pairs = ops.reshape(x, (-1, *_split(x.shape, axis)))
        even, odd = (
            (pairs[:, :, 0], pairs[:, :, 1])
            if axis == 1
            else (
                pairs[:, :, :, 0],
                pairs[:, :, :, 1],
            )
        )
        size = pairs.shape[axis] - reach
        x = sum(
            float(taps[2 * i + phase]) * _crop(pixels, axis, i, size)
            for phase, pixels in enumerate((even, odd))
            for i in range(len(taps) // 2)
        )
    return x


def upsample(x: Tensor, taps: Sequence[float] = (1, 1)) -> Tensor:
    """Returns images at twice the resolution: zeros between the pixels, filtered by `taps` along
    both axes, brightness kept.

    Args:
        x: (B, H, W, C).
        taps: symmetric filter of even length; (1, 1) repeats every pixel.
    """
    taps = 2.0 * np.divide(taps, np.sum(taps))
    if len(taps) == 2:
        return ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
    reach = len(taps) // 2 - 1
    for axis in (1, 2):
        size = x.shape[axis]
        padded = _pad(x, axis, reach)
        phases = [
            sum(
                float(taps[j]) * _crop(padded, axis, reach + (phase + reach - j) // 2, size)
                for j in range(len(taps))
                if (phase + reach - j) % 2 == 0
            )
            for phase in (0, 1)
        ]
        shape = [*x.shape[1:]]
        shape[axis - 1] *= 2
        x = ops.reshape(ops.stack(phases, axis=axis + 1), (-1, *shape))
    return x


def _pad(x: Tensor, axis: int, width: int) -> Tensor:
    if width == 0:
        return x
    return ops.pad(x, [(width, width) if i == axis else (0, 0) for i in range(4)])


def _split(shape: Sequence[int], axis: int) -> list[int]:
    """The shape without the batch, `axis` split into pairs."""
    sizes = [*shape[1:]]
    sizes[axis - 1 : axis] = [shape[axis] // 2, 2]
    return sizes


def _crop(x: Tensor, axis: int, start: int, size: int) -> Tensor:
    if start == 0 and x.shape[axis] == size:
        return x
    return x[:, start : start + size] if axis == 1 else x[:, :, start : start + size]

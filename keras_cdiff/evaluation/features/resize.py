"""Resizing of images, by the rules under which Fréchet distances are published.

Each rule is linear and separable, so that a resize is two matrices: R_h X R_w^T for a channel X.

clean              bicubic (a = -0.5), widened where the image shrinks so that it antialiases, as
                   Pillow does it. Channels stay floats, not rounded, and are clipped to [0, 255].
                   Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"
                   (2022), https://arxiv.org/abs/2104.11222.
legacy_tensorflow  bilinear, never antialiased, output pixel i at input position i in / out: the
                   operation ResizeBilinear inside the graph of the first FID, which the evaluations
                   of guided-diffusion and EDM keep.
legacy_pytorch     bilinear, never antialiased, pixel centres at half integers: pytorch-fid.
"""

from functools import lru_cache

import keras
import numpy as np
from keras import ops

Tensor = keras.KerasTensor

MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")


@lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int, mode: str = "clean") -> np.ndarray:
    """Returns the matrix that resizes one axis of an image.

    With s = size_in / size_out, row i holds the weights of the input pixels j, which sum to 1:
    "clean": bicubic((j + 1/2 - (i + 1/2) s) / max(s, 1)), normalised;
    "legacy_tensorflow": max(0, 1 - |j - i s|);
    "legacy_pytorch": max(0, 1 - |j - ((i + 1/2) s - 1/2)|);
    the positions of the last two kept within [0, size_in - 1].

    Args:
        size_in: pixels of the axis.
        size_out: pixels that it shall have.
        mode: one of `MODES`.

    Returns:
        Read-only float64 (size_out, size_in).

    Raises:
        ValueError: if a size is not positive, or the mode unknown.
    """
    check_mode(mode)
    if size_in < 1 or size_out < 1:
        raise ValueError(
            "Images are resized from and to at least one pixel. "
            f"Received: size_in={size_in}, size_out={size_out}"
        )
    outputs, inputs = np.arange(size_out)[:, None], np.arange(size_in)
    scale = size_in / size_out
    if mode == "clean":
        matrix = _bicubic((inputs + 0.5 - (outputs + 0.5) * scale) / max(scale, 1.0))
        matrix /= matrix.sum(axis=1, keepdims=True)
    else:
        positions = (
            outputs * scale if mode == "legacy_tensorflow" else (outputs + 0.5) * scale - 0.5
        )
        positions = np.clip(positions, 0, size_in - 1)
        matrix = np.maximum(0, 1 - np.abs(inputs - positions))
    matrix.setflags(write=False)
    return matrix


def resize(images: Tensor, size: tuple[int, int], mode: str = "clean") -> Tensor:
    """Returns a batch of images at another size, in float32.

    The matrix products have the precision that the backend gives to float32: a GPU that multiplies
    in TF32 moves the pixels of a photograph by a quarter of a grey level at most.

    Args:
        images: (B, H, W, C), H and W static, values in [0, 255].
        size: height and width of the result, float32 (B, *size, C) in [0, 255].
        mode: one of `MODES`.

    Raises:
        ValueError: if the mode is unknown.
    """
    check_mode(mode)
    images = ops.cast(images, "float32")
    height, width = images.shape[1:3]
    if (height, width) == tuple(size):
        return images
    rows, columns = (
        ops.convert_to_tensor(resize_matrix(*sizes, mode).astype("float32"))
        for sizes in ((height, size[0]), (width, size[1]))
    )
    channels = ops.transpose(images, (0, 3, 1, 2))
    channels = ops.matmul(ops.matmul(rows, channels), ops.transpose(columns))
    # A bicubic filter overshoots at edges.
    return ops.clip(ops.transpose(channels, (0, 2, 3, 1)), 0.0, 255.0)


def resize_image(image: np.ndarray, size: tuple[int, int], mode: str = "clean") -> np.ndarray:
    """Returns one image (H, W, C), in [0, 255], as float32 (*size, C), computed in float64 on the
    host.

    Raises:
        ValueError: if the mode is unknown, or the image not of rank 3.
    """
    check_mode(mode)
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(f"An image is an array (H, W, C). Received: image of shape {image.shape}")
    if image.shape[:2] == tuple(size):
        return image.astype(np.float32)
    rows = resize_matrix(image.shape[0], size[0], mode)
    columns = resize_matrix(image.shape[1], size[1], mode)
    channels = rows @ np.moveaxis(image, -1, 0).astype(np.float64) @ columns.T
    return np.clip(np.moveaxis(channels, 0, -1), 0, 255).astype(np.float32)


def check_mode(mode: str) -> None:
    """Raises a ValueError unless the mode is one of `MODES`."""
    if mode not in MODES:
        raise ValueError(
            f"Images are resized in one of the modes {', '.join(MODES)}. Received: resize={mode!r}"
        )


def _bicubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -1/2 (Keys, 1981)."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))

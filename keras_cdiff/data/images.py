"""Images for looking at: back to 8 bits, laid out in a grid, written to a file."""

import math
import os
from pathlib import Path

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import write_whole


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Rounds images in [-1, 1] to 8 bits: (x + 1) 127.5, clipped to [0, 255].

    Args:
        images: Floats of any shape, nominally in [-1, 1].

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: If the images are integers, or not all finite.
    """
    images = np.asarray(images)
    if images.dtype.kind in "biu":
        raise ValueError(
            "Images must be floats in [-1, 1]; leave out the conversion if they have 8 bits "
            f"already. Received: images of dtype {images.dtype}"
        )
    images = images.astype(np.float32)
    not_finite = images.size - np.count_nonzero(np.isfinite(images))
    if not_finite:
        raise ValueError(
            "Images must be finite; look for the first step at which the model's loss or weights "
            f"were not. Received: images with {not_finite} of {images.size} values not finite"
        )
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def image_grid(
    images: np.ndarray, columns: int | None = None, scale: int = 1, padding: int = 2
) -> np.ndarray:
    """Lays images out in rows, from left to right and from top to bottom, on white.

    Args:
        images: uint8 (N, H, W, C).
        columns: Images in a row, N at the most; ceil(sqrt(N)) by default.
        scale: Each pixel becomes scale x scale pixels.
        padding: White pixels around and between images.

    Returns:
        uint8 (rows (scale H + padding) + padding, columns (scale W + padding) + padding, C).

    Raises:
        ValueError: If the images are not uint8 of rank 4, or a number is out of range.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise ValueError(
            "A grid takes uint8 images (N, H, W, C), at least one; convert floats in [-1, 1] with "
            f"to_uint8. Received: images of shape {images.shape}, dtype {images.dtype}"
        )
    if columns is not None:
        check_integer("columns", columns)
    check_integer("scale", scale)
    check_integer("padding", padding, 0)
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, channels = images.shape
    cell_height, cell_width = height + padding, width + padding
    grid_shape = (rows * cell_height + padding, columns * cell_width + padding, channels)
    grid = np.full(grid_shape, 255, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * cell_height + padding, column * cell_width + padding
        grid[top : top + height, left : left + width] = image
    return grid


def save_image_grid(
    images: np.ndarray,
    path: str | os.PathLike,
    columns: int | None = None,
    scale: int = 1,
    padding: int = 2,
) -> None:
    """Writes `image_grid` to a file, atomically.

    Args:
        images: uint8 (N, H, W, C), C being 1 (grey), 3 (RGB) or 4 (RGBA).
        path: The file to write; its suffix says the format, as ".png". Folders are made.
        columns, scale, padding: As in `image_grid`.

    Raises:
        ValueError: As `image_grid`, or if the suffix names no format Pillow writes, or the
            format does not hold so many channels.
    """
    from PIL import Image

    path = Path(path)
    grid = image_grid(images, columns, scale, padding)
    image_format = Image.registered_extensions().get(path.suffix.lower())  # fills Image.SAVE
    if image_format not in Image.SAVE:
        raise ValueError(
            f"The file's suffix must name an image format, as .png. Received: path={str(path)!r}"
        )
    if grid.shape[-1] not in (1, 3, 4) or (grid.shape[-1] == 4 and image_format == "JPEG"):
        raise ValueError(
            "An image file holds 1, 3 or 4 channels, a JPEG file 1 or 3; pick channels with "
            f"images[..., :3]. Received: images of shape {np.shape(images)}, path={str(path)!r}"
        )
    image = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
    write_whole(path, lambda part: image.save(part, format=image_format))

"""From a source of images to the batches that `DiffusionModel.fit` takes."""

import operator
import os
from typing import TYPE_CHECKING

import numpy as np

from keras_cdiff.data.sources import Source

if TYPE_CHECKING:
    import grain


def prepare_image(image: np.ndarray, image_size: int, channels: int = 3) -> np.ndarray:
    """Makes an image square, of one size and in [-1, 1], as ADM and DiT prepare ImageNet.

    The image is halved by box averages while its short side is at least twice `image_size`,
    resized by Pillow's antialiased bicubic filter until the short side is `image_size`, and
    cropped at its centre. The values become x / 127.5 - 1.

    Args:
        image: uint8 (H, W) or (H, W, C), C being 1 (grey), 3 (RGB) or 4 (RGBA, laid on white).
        image_size: The side of the result, in pixels.
        channels: 3 for RGB, or 1 for grey: 0.299 R + 0.587 G + 0.114 B.

    Returns:
        float32 (image_size, image_size, channels) in [-1, 1].

    Raises:
        ValueError: If the image has another type or shape, or an argument is out of range.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), and
    Peebles and Xie, "Scalable Diffusion Models with Transformers" (2023): their ImageNet data.
    """
    _check_integer("image_size", image_size, 1)
    _check_channels(channels)
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(
            "An image must be a uint8 array (H, W) or (H, W, C), C being 1, 3 or 4; convert "
            "values in [-1, 1] with to_uint8. "
            f"Received: image of shape {image.shape}, dtype {image.dtype}"
        )
    if image.size == 0:
        raise ValueError(f"An image must have pixels. Received: image of shape {image.shape}")
    image = to_channels(image, channels)
    if image.shape[:2] != (image_size, image_size):
        image = _resize_and_crop(image, image_size)
    return image / np.float32(127.5) - np.float32(1)


def read_images(
    source: Source, image_size: int, channels: int = 3, num_images: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the images of a source into memory, prepared as `make_dataset` prepares them.

    Args:
        source: The images; see `open_source`.
        image_size: The side of the images, in pixels.
        channels: 3 for RGB, 1 for grey.
        num_images: How many of them, at even distances; all if None, or if there are fewer.

    Returns:
        float32 (N, image_size, image_size, channels) in [-1, 1], and labels int32 (N,) or None.
    """
    total = len(source)
    places = np.unique(np.linspace(0, total - 1, num_images or total).round().astype(int))
    images = np.empty((len(places), image_size, image_size, channels), np.float32)
    for row, place in enumerate(places.tolist()):
        images[row] = prepare_image(source[place]["image"], image_size, channels)
    labels = source.labels()
    return images, None if labels is None else labels[places]


def make_dataset(
    source: Source,
    image_size: int,
    batch_size: int,
    seed: int = 0,
    channels: int = 3,
    horizontal_flip: bool = False,
    num_epochs: int | None = None,
    start_step: int = 0,
    shuffle: bool = True,
    labels: bool = True,
) -> "grain.IterDataset":
    """Batches of a source, shuffled anew each epoch, for `DiffusionModel.fit(..., shuffle=False)`.

    Batch k depends on the arguments and k alone, not on `start_step`: a run that resumes with
    `start_step` at its number of steps done sees the batches it would have seen. Batches run
    on from one epoch into the next, so none is short; with `num_epochs`, what is left at the
    end is dropped.

    Args:
        source: The images; see `open_source`.
        image_size: The side of the images, in pixels.
        batch_size: Images in a batch, at most the source's length.
        seed: A non-negative integer; it decides the order and the flips.
        channels: 3 for RGB, 1 for grey.
        horizontal_flip: Whether to flip each image left to right with probability 1/2.
        num_epochs: Passes over the source; without end if None (give `fit` steps_per_epoch).
        start_step: The first batch.
        shuffle: Whether to shuffle; else the source's own order.
        labels: Whether to hand on the source's labels; False for an unconditional model.

    Returns:
        A `grain.IterDataset` of dicts: "image" float32 (B, H, W, C) in [-1, 1] and, where the
        source has labels that are wanted, "label" int32 (B,).

    Raises:
        ValueError: If an argument is out of range, or there is no batch `start_step`.
    """
    import grain

    _check_integer("image_size", image_size, 1)
    _check_integer("batch_size", batch_size, 1)
    _check_integer("seed", seed, 0)
    _check_integer("start_step", start_step, 0)
    if num_epochs is not None:
        _check_integer("num_epochs", num_epochs, 1)
    _check_channels(channels)
    if batch_size > len(source):
        raise ValueError(
            f"A batch must not exceed the source, {source.name!r} with {len(source)} images; "
            f"make the batch smaller. Received: batch_size={batch_size}"
        )

    def prepare(example: dict) -> dict:
        prepared = {"image": prepare_image(example["image"], image_size, channels)}
        if labels and "label" in example:
            prepared["label"] = example["label"]
        return prepared

    order_seed, flip_seed = map(int, np.random.SeedSequence(seed).generate_state(2))
    dataset = grain.MapDataset.source(source)
    if shuffle:
        dataset = dataset.shuffle(order_seed)
    dataset = dataset.repeat(num_epochs).map(prepare)
    if horizontal_flip:
        dataset = dataset.random_map(_flip_half, seed=flip_seed)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if start_step >= len(dataset):
        raise ValueError(
            f"There are {len(dataset)} batches in {num_epochs} epochs; train for more epochs, or "
            f"start earlier. Received: start_step={start_step}"
        )
    # Grain reads ahead by whole batches: its own 500 would fill the memory with large images.
    threads = min(4, os.cpu_count() or 1)
    return dataset[start_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )


def _check_integer(name: str, value: int, least: int) -> None:
    try:
        valid = operator.index(value) >= least
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"{name} must be an integer >= {least}. Received: {name}={value!r}")


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (RGB) or 1 (grey). Received: channels={channels!r}")


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Makes a uint8 image (H, W, C) grey (`channels` 1) or RGB (3): RGBA is laid on white, grey is
    0.299 R + 0.587 G + 0.114 B, and RGB of grey repeats it.
    """
    if image.shape[2] == 4:
        opacity = image[..., 3:] / np.float32(255)
        image = np.rint(opacity * image[..., :3] + (1 - opacity) * 255).astype(np.uint8)
    if image.shape[2] == 3 and channels == 1:
        grey = np.rint(image @ np.array([[0.299], [0.587], [0.114]], np.float32))
        return grey.astype(np.uint8)
    return np.repeat(image, channels, axis=2) if image.shape[2] < channels else image


def _resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    while min(picture.size) >= 2 * size:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = size / min(picture.size)
    scaled = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture).reshape(size, size, image.shape[2])


def _flip_half(example: dict, rng: np.random.Generator) -> dict:
    if rng.random() >= 0.5:
        return example
    return {**example, "image": np.ascontiguousarray(example["image"][:, ::-1])}

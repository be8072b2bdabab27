"""From a source of images to the batches that `DiffusionModel.fit` takes."""

import os
from typing import TYPE_CHECKING

import numpy as np

from keras_cdiff.common.arrays import evenly_spaced
from keras_cdiff.common.checks import check_integer
from keras_cdiff.data.latents import draw_latent
from keras_cdiff.data.source import Source

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
    check_integer("image_size", image_size, 1)
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

    Of latents it is one draw each, of the image that is not mirrored, the same in every call.

    Args:
        source: The images or latents; see `open_source`.
        image_size: The side of the images, in pixels, or that of the latents.
        channels: 3 for RGB, 1 for grey; for latents their own number.
        num_images: How many of them, at even distances; all if None, or if there are fewer.

    Returns:
        float32 (N, image_size, image_size, channels) in [-1, 1], or latents in their own units;
        and labels int32 (N,) or None.

    Raises:
        ValueError: If a size or number of channels is out of range, or not that of the latents.
    """
    latents = _reads_latents(source, image_size, channels)
    total = len(source)
    places = evenly_spaced(min(num_images or total, total), total)
    images = np.empty((len(places), image_size, image_size, channels), np.float32)
    for row, place in enumerate(places.tolist()):
        example = source[place]
        if latents:
            images[row] = draw_latent(example["moments"], np.random.default_rng(place))
        else:
            images[row] = prepare_image(_image_of(example), image_size, channels)
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
    shard: tuple[int, int] = (0, 1),
) -> "grain.IterDataset":
    """Batches of a source, shuffled anew each epoch, for `DiffusionModel.fit(..., shuffle=False)`.

    Batch k depends on the arguments and k alone, so a run that resumes with `start_step` at its
    number of steps done sees the batches it would have seen. Batches run on from one epoch into
    the next; with `num_epochs`, what is left at the end is dropped. Latents are drawn anew whenever
    they are read, a flipped one from the latent of the mirrored image.

    Args:
        source: The images or latents; see `open_source`. Of an example's "contexts" (K, L, D),
            the embeddings of its K captions, one is taken at random each time; without a caption
            it is zero, the null text.
        image_size: The side of the images, in pixels, or that of the latents.
        batch_size: Images in a batch, at most the source's length.
        seed: A non-negative integer; it decides the order, the flips, the draws of latents and the
            choice among captions.
        channels: 3 for RGB, 1 for grey; for latents their own number.
        horizontal_flip: Whether to flip each image left to right with probability 1/2.
        num_epochs: Passes over the source; without end if None (give `fit` steps_per_epoch).
        start_step: The first batch.
        shuffle: Whether to shuffle; else the source's own order.
        labels: Whether to hand on the source's labels; False for an unconditional model.
        shard: (index, count): of each batch only the index-th of so many equal parts is read, for
            training by several processes.

    Returns:
        A `grain.IterDataset` of dicts: "image" float32 (B, H, W, C), in [-1, 1] or latents in
        their own units; where the source has labels that are wanted, "label" int32 (B,); and where
        it has contexts, "context" float32 (B, L, D).

    Raises:
        ValueError: If an argument is out of range, or not what the source's latents have, or there
            is no batch `start_step`.
    """
    import grain

    check_integer("image_size", image_size, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    check_integer("start_step", start_step, 0)
    if num_epochs is not None:
        check_integer("num_epochs", num_epochs, 1)
    index, count = shard
    check_integer("shard's count", count, 1)
    if batch_size % count or index not in range(count):
        raise ValueError(
            "A shard is (index, count), with a count that divides the batch. "
            f"Received: shard={shard}, batch_size={batch_size}"
        )
    latents = _reads_latents(source, image_size, channels, horizontal_flip)
    if batch_size > len(source):
        raise ValueError(
            f"A batch must not exceed the source, {source.name!r} with {len(source)} images; "
            f"make the batch smaller. Received: batch_size={batch_size}"
        )

    def prepare(example: dict) -> dict:
        if latents:
            prepared = {"moments": example["moments"]}
        else:
            prepared = {"image": prepare_image(_image_of(example), image_size, channels)}
        if labels and "label" in example:
            prepared["label"] = example["label"]
        if "contexts" in example:
            prepared["contexts"] = example["contexts"]
        return prepared

    seeds = map(int, np.random.SeedSequence(seed).generate_state(4))
    order_seed, flip_seed, draw_seed, context_seed = seeds
    dataset = grain.MapDataset.source(source)
    if shuffle:
        dataset = dataset.shuffle(order_seed)
    dataset = dataset.repeat(num_epochs).map(prepare)
    if horizontal_flip:
        dataset = dataset.random_map(_flip_half, seed=flip_seed)
    if latents:
        dataset = dataset.random_map(_draw, seed=draw_seed)
    dataset = dataset.random_map(_choose_context, seed=context_seed)
    if count > 1:
        dataset = grain.MapDataset.source(_Shard(dataset, batch_size, index, count))
    dataset = dataset.batch(batch_size // count, drop_remainder=True)
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


class _Shard:
    """The examples of a data set that belong to the index-th of `count` parts of each batch."""

    def __init__(self, dataset: "grain.MapDataset", batch_size: int, index: int, count: int):
        self.dataset, self.batch_size = dataset, batch_size
        self.rows = batch_size // count
        self.first = index * self.rows

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size * self.rows

    def __getitem__(self, place: int) -> dict:
        batch, row = divmod(place, self.rows)
        return self.dataset[batch * self.batch_size + self.first + row]


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (RGB) or 1 (grey). Received: channels={channels!r}")


def _reads_latents(
    source: Source, image_size: int, channels: int, horizontal_flip: bool = False
) -> bool:
    """Whether latents are to be read, after checks that they are there as they are wanted."""
    # A source that does not say what it holds is not read for 1 or 3 channels.
    if not getattr(source, "is_latent", channels not in (1, 3)):
        _check_channels(channels)
        return False
    moments = source[0].get("moments")
    if moments is None:
        _check_channels(channels)
    views, height, width, numbers = moments.shape
    if (height, width, numbers // 2) != (image_size, image_size, channels):
        raise ValueError(
            f"A model of the latents {source.name!r} takes them as they are, of {height} x {width} "
            f"and {numbers // 2} channels; set both. "
            f"Received: image_size={image_size!r}, channels={channels!r}"
        )
    if horizontal_flip and views == 1:
        raise ValueError(
            f"The latents {source.name!r} are without those of mirrored images: encode anew with "
            f"--mirrored, or train without flips. Received: horizontal_flip={horizontal_flip}"
        )
    return True


def _image_of(example: dict) -> np.ndarray:
    if "moments" in example:
        raise ValueError(
            "The source is one of latents; give their size and their number of channels. "
            f"Received: an example of moments of shape {example['moments'].shape}"
        )
    return example["image"]


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
    if "moments" in example:
        return {**example, "moments": example["moments"][1:]}
    return {**example, "image": np.ascontiguousarray(example["image"][:, ::-1])}


def _draw(example: dict, rng: np.random.Generator) -> dict:
    moments = example.pop("moments")
    return {"image": draw_latent(moments, rng), **example}


def _choose_context(example: dict, rng: np.random.Generator) -> dict:
    if "contexts" in example:
        contexts = example.pop("contexts")
        if len(contexts):
            example["context"] = np.asarray(contexts[rng.integers(len(contexts))], np.float32)
        else:
            example["context"] = np.zeros(contexts.shape[1:], np.float32)
    return example

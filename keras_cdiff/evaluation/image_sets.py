"""Sets of images to be compared: those of a data source, and those that a model draws."""

import abc
import functools
import os
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import keras
import numpy as np

from keras_cdiff.autoencoders import Autoencoder
from keras_cdiff.common.arrays import evenly_spaced, fingerprint, network_weights
from keras_cdiff.common.checks import check_integer
from keras_cdiff.data import (
    ArraySource,
    Source,
    TextContexts,
    open_source,
    prepare_image,
    to_channels,
    to_uint8,
)
from keras_cdiff.distribution import sharing
from keras_cdiff.samplers import Guidance, Sampler, default_sampler, sample


class ImageSet(abc.ABC):
    """A finite sequence of images, read in order as batches of uint8 (B, H, W, C).

    Attributes:
        name: what the set is called in results.
        batch_size: images that are made at once, however few are needed.
    """

    name: str
    batch_size: int = 1

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abc.abstractmethod
    def batches(self, start: int, batch_size: int) -> Iterator[Sequence[np.ndarray]]:
        """Yields the images from `start` on: uint8 arrays (H, W, C), or one (B, H, W, C)."""

    @abc.abstractmethod
    def describe(self) -> dict:
        """Returns what results say about the set, as plain data."""

    @abc.abstractmethod
    def digest(self) -> str:
        """Returns a sha256 over whatever decides the images, so that features can be reused."""


class SourceImages(ImageSet):
    """The images of a data source, as they are or prepared as for training.

    Args:
        source: a `keras_cdiff.data.Source`, or its name as for `open_source` ("npz:PATH",
            "folder:PATH", "tfds:NAME:SPLIT", "emoji"), or the path of an .npz file or a folder, or
            a uint8 array (N, H, W, C).
        image_size: centre-crops and resizes as training does; None leaves the images as they are.
        channels: 1 averages colours into grey, 3 repeats grey; None leaves grey and RGB as they
            are. Transparent images are laid on white.
        num_images: how many of them, at even distances; None for all.
        name: what the set is called in results; the source's name by default.

    Raises:
        ValueError: if the source cannot be read, or has fewer images.
    """

    def __init__(
        self,
        source: Source | str | os.PathLike | np.ndarray,
        image_size: int | None = None,
        channels: int | None = None,
        num_images: int | None = None,
        name: str | None = None,
    ):
        if isinstance(source, os.PathLike):
            source = f"{'folder' if Path(source).is_dir() else 'npz'}:{os.fspath(source)}"
        if isinstance(source, str):
            source = open_source(source)
        elif not isinstance(source, Source):
            source = ArraySource(name or "array", source)
        self.source, self.image_size, self.channels = source, image_size, channels
        self.name = name or source.name
        total = len(source)
        if num_images is not None:
            limit = f"as many as there are in {source.name!r} at the most"
            check_integer("num_images", num_images, 1, total, limit)
        self._places = evenly_spaced(num_images or total, total)

    def __len__(self) -> int:
        return len(self._places)

    def batches(self, start: int, batch_size: int) -> Iterator[Sequence[np.ndarray]]:
        with ThreadPool(min(4, os.cpu_count() or 1)) as pool:  # decoding releases the lock
            for first in range(start, len(self), batch_size):
                yield pool.map(self._read, self._places[first : first + batch_size])

    def _read(self, place: int) -> np.ndarray:
        image = self.source[int(place)]["image"]
        channels = self.channels or (1 if image.shape[-1] == 1 else 3)
        if self.image_size is not None:
            return to_uint8(prepare_image(image, self.image_size, channels))
        return to_channels(image, channels)

    def labels(self) -> np.ndarray | None:
        """Returns the labels (N,) of the images, or None."""
        return self._labels

    @functools.cached_property  # a reference is described at each evaluation, and may be large
    def _labels(self) -> np.ndarray | None:
        labels = self.source.labels()
        return None if labels is None else labels[self._places]

    def describe(self) -> dict:
        return {
            "images": self.name,
            "count": len(self),
            "image_size": list(self._read(0).shape[:2]),  # that of the first
            "labels": count_labels(self.labels()),
        }

    def digest(self) -> str:
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        parts = (self.source.digest(), self._places.tolist(), self.image_size, self.channels)
        return fingerprint(repr(parts))


class GeneratedImages(ImageSet):
    """Samples of a model, drawn when they are read; sample i depends on `seed` + i and its label.

    Of several processes it is `extract` that shares the samples. A model that has taken no training
    step here, such as one from a weights file, is described without iteration and average.

    Args:
        model: a `DiffusionModel`.
        num_images: number of samples N.
        sampler: how; by default that of `keras_cdiff.sample`.
        seed: seed of the first sample, >= 0; the others follow by ones.
        label: class of all samples, or N classes; None shows the classes in turn, as often each.
        context: the contexts of the samples, an array (N, L, D) or a
            `keras_cdiff.data.TextContexts`; None for a model without, or for the null context.
        guidance: scale of the guidance, or a `Guidance`.
        use_ema: whether the averaged weights are used, if the model keeps an average.
        batch_size: samples drawn at once, fewer if else a process had none to draw.
        name: what the set is called in results.
        autoencoder: what decodes the samples of a model of latents; None for one of images with 1
            or 3 channels.

    Raises:
        ValueError: if the model is one of latents and there is no autoencoder, or a number is out
            of its range.
    """

    def __init__(
        self,
        model: keras.Model,
        num_images: int,
        sampler: Sampler | None = None,
        *,
        seed: int = 0,
        label: int | Sequence[int] | None = None,
        context: np.ndarray | TextContexts | None = None,
        guidance: float | Guidance = 1.0,
        use_ema: bool = True,
        batch_size: int = 64,
        name: str = "samples",
        autoencoder: Autoencoder | None = None,
    ):
        channels = model.image_shape[-1]
        if model.is_latent and autoencoder is None:
            raise ValueError(
                "Images to compare have 1 or 3 channels; latents must be decoded first: give an "
                f"`autoencoder`. Received: a model of {channels} channels"
            )
        if context is not None and len(context) != num_images:
            raise ValueError(
                f"`context` must hold {num_images} contexts, one a sample. "
                f"Received: {len(context)} contexts"
            )
        num_images = check_integer("num_images", num_images, 1, None, "the number of samples")
        seed = check_integer("seed", seed, 0, None, "that of the first sample")
        batch_size = check_integer("batch_size", batch_size, 1, None, "samples drawn at once")
        if sharing().count > 1:
            batch_size = min(batch_size, -(-num_images // sharing().count))
        if label is None and context is None and model.num_classes:
            label = np.arange(num_images) % model.num_classes
        if label is not None:
            label = np.broadcast_to(np.asarray(label), (num_images,))
        self.model, self.sampler = model, sampler or default_sampler(model)
        self.seed, self.label, self.guidance = seed, label, Guidance.of(guidance)
        self.context, self.autoencoder = context, autoencoder
        self.use_ema = use_ema and model.ema_backbone is not None
        self.batch_size, self._count = batch_size, num_images
        self.name = name

    def __len__(self) -> int:
        return self._count

    def batches(self, start: int, batch_size: int) -> Iterator[np.ndarray]:
        for first in range(start, self._count, self.batch_size):
            # A whole batch each time: a short one would compile anew.
            rows = np.minimum(np.arange(first, first + self.batch_size), self._count - 1)
            images = sample(
                self.model,
                len(rows),
                self.sampler,
                seed=[self.seed + int(row) for row in rows],
                label=None if self.label is None else self.label[rows],
                context=None if self.context is None else self.context[rows],
                guidance=self.guidance,
                use_ema=self.use_ema,
                batch_size=self.batch_size,
                progress=False,
            )
            images = images[: self._count - first]
            if not np.isfinite(images).all():
                raise FloatingPointError(
                    "The model's samples are not finite: look for the first step at which its loss "
                    "or its weights were not, and use weights of before. "
                    f"Received: samples of {self.name!r} that are not finite"
                )
            if self.autoencoder is not None:
                images = self.autoencoder.decode(images)
            yield to_uint8(images)

    def describe(self) -> dict:
        iteration = int(keras.ops.convert_to_numpy(self.model.iteration)) or None
        ema = None
        if self.use_ema and iteration:
            decay, _ = self.model.averages()[0]
            ema = f"{type(decay).__name__}({_arguments(decay)})"
        interval = self.guidance.interval
        factor = 1 if self.autoencoder is None else self.autoencoder.factor
        return {
            "images": self.name,
            "count": self._count,
            "image_size": [factor * side for side in self.model.image_shape[:2]],
            "autoencoder": None if self.autoencoder is None else self.autoencoder.describe(),
            "contexts": self._contexts_digest(),
            "labels": count_labels(self.label),
            "sampler": f"{type(self.sampler).__name__}({_arguments(self.sampler)})",
            "num_steps": self.sampler.num_steps,
            "guidance": self.guidance.scale,
            "guidance_interval": None if interval is None else list(interval),
            "seeds": [self.seed, self.seed + self._count - 1],
            "use_ema": self.use_ema,
            "ema": ema,
            "iteration": iteration,
            "weights": self._weights_digest()[:16],
        }

    def _contexts_digest(self) -> str | None:
        if self.context is None:
            return None
        if isinstance(self.context, np.ndarray):
            return fingerprint("", self.context)
        return self.context.digest()

    def _weights_digest(self) -> str:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()  # within fit() on JAX the weights are not on the model
        return fingerprint("", *network_weights(self.model.network(self.use_ema)))

    def digest(self) -> str:
        network = self.model.network(self.use_ema)
        unnamed = {k: v for k, v in network.get_config().items() if k not in ("name", "trainable")}
        config = {
            "network": unnamed,
            "guidance": self.guidance.get_config(),
            **{
                part: keras.saving.serialize_keras_object(getattr(self.model, part))
                for part in ("schedule", "parameterization")
            },
            "sampler": keras.saving.serialize_keras_object(self.sampler),
            "seeds": (self.seed, self._count),
            "labels": None if self.label is None else self.label.tolist(),
        }
        if self.context is not None:
            config["contexts"] = self._contexts_digest()
        if self.autoencoder is not None:
            config["autoencoder"] = self.autoencoder.fingerprint()
        return fingerprint(self._weights_digest() + repr(config))


def proportional_labels(labels: np.ndarray, num_images: int, seed: int = 0) -> np.ndarray:
    """Returns `num_images` labels in the proportions of a data set's `labels` (N,), rounded, in a
    random order of `seed`, so that distances do not measure the proportions.
    """
    places = (np.arange(num_images) + 0.5) / num_images * len(labels)
    return np.random.default_rng(seed).permutation(np.sort(labels)[places.astype(np.int64)])


def count_labels(label: np.ndarray | None) -> dict[str, int] | None:
    """Returns how often each label occurs, as JSON holds it."""
    if label is None:
        return None
    values, counts = np.unique(label, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _arguments(part: object) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in part.get_config().items())

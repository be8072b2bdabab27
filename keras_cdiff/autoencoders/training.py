"""Fits the small autoencoder to images."""

from collections.abc import Iterable, Iterator

import keras
import numpy as np
from keras import ops

from keras_cdiff.autoencoders.autoencoder import Autoencoder
from keras_cdiff.autoencoders.kl import kl_networks
from keras_cdiff.common.arrays import evenly_spaced
from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.errors import RetainedError

Tensor = keras.KerasTensor

# Images by which the scale of latents is measured.
_MEASURED = 1000


def fit_autoencoder(
    images: np.ndarray | Iterable,
    steps: int = 2000,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    kl_weight: float = 3e-3,
    factor: int = 4,
    channels: int = 4,
    width: int = 32,
    seed: int = 0,
    verbose: int | str = "auto",
) -> Autoencoder:
    """Returns a small autoencoder that is trained on images.

        loss = mean |x - x'| + mean (x - x')^2 + kl_weight KL

    with x' the decoded draw of the latents of x, means over all values of images, and KL the
    divergence of the latents' distribution from N(0, 1) in nats, its mean over all values of
    latents. Rombach et al. sum instead, over the values of an image and over those of its latents;
    an image has 3 factor^2 / C times as many, so their weight w is w C / (3 factor^2) here. Their
    perceptual and adversarial losses are left out, so fine texture is smoothed. Adam's learning
    rate rises over the first 100 steps (a tenth of the steps, if fewer) and falls to 0 along a
    cosine.

    Args:
        images: floats (N, H, W, 3) in [-1, 1]; or an iterable of batches (B, H, W, 3), or of dicts
            of them under "image", such as `keras_cdiff.data.make_dataset` makes. It is begun again
            when it ends before the steps are done.
        steps: training steps, at least 1.
        batch_size: images in a step; only for an array, of which it is at most N.
        learning_rate: the highest.
        kl_weight: at least 0. More makes latents more like Gaussian noise, and images worse.
        factor, channels, width: of the networks; see `kl_networks`.
        seed: of weights, order and draws; a non-negative integer.
        verbose: as in `keras.Model.fit`.

    Returns:
        The autoencoder, called "kl". Its scale is 1 / the standard deviation of the raw latents
        that are drawn of 1,000 images (or all, if fewer).

    Raises:
        ValueError: if an argument is out of range, images do not suit, or there are too few.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022),
        section 3.1, and appendix G for the scale.
    """
    _check(steps, batch_size, learning_rate, kl_weight, seed)
    encoder, decoder = kl_networks(factor, channels, width, seed)
    feed = _Feed(images, batch_size, factor, seed)
    model = _Training(encoder, decoder, kl_weight, seed)
    model.compile(
        keras.optimizers.Adam(_rate(learning_rate, steps), beta_2=0.99, clipnorm=1.0),
        # TensorFlow runs convolutions faster without XLA on CPU.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    # If the first step made the optimizer's variables, TensorFlow would trace it twice.
    model.optimizer.build(model.trainable_variables)
    with feed.errors.raised():
        model.fit(feed.batches(), steps_per_epoch=steps, shuffle=False, verbose=verbose)
    scale = 1 / _latent_std(Autoencoder(encoder, decoder, 1.0, "kl"), feed.sample(), seed)
    return Autoencoder(encoder, decoder, scale, "kl")


class _Training(keras.Model):
    """Both networks, in training."""

    def __init__(self, encoder: keras.Model, decoder: keras.Model, kl_weight: float, seed: int):
        super().__init__(dtype="float32", autocast=False, name="autoencoder")
        self.encoder, self.decoder, self.kl_weight = encoder, decoder, kl_weight
        self.generator = keras.random.SeedGenerator(seed)
        self.absolute_error = keras.metrics.Mean(name="absolute_error")
        self.divergence = keras.metrics.Mean(name="kl")
        self.built = True

    def call(self, images: Tensor, training: bool = False) -> dict[str, Tensor]:
        moments = self.encoder(images, training=training)
        mean, log_variance = ops.split(moments, 2, axis=-1)
        log_variance = ops.clip(log_variance, -30.0, 20.0)
        noise = keras.random.normal(ops.shape(mean), seed=self.generator)
        latents = mean + ops.exp(log_variance / 2) * noise
        decoded = self.decoder(latents, training=training)
        return {"mean": mean, "log_variance": log_variance, "images": decoded}

    def compute_loss(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        y_pred: dict | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        mean, log_variance = y_pred["mean"], y_pred["log_variance"]
        difference = x - y_pred["images"]
        absolute = ops.mean(ops.absolute(difference))
        divergence = ops.mean(ops.square(mean) + ops.exp(log_variance) - 1 - log_variance) / 2
        self.absolute_error.update_state(absolute)
        self.divergence.update_state(divergence)
        return absolute + ops.mean(ops.square(difference)) + self.kl_weight * divergence


class _Feed:
    """Batches without end of an array or an iterable, checked, and a sample of the images."""

    def __init__(self, images: np.ndarray | Iterable, batch_size: int, factor: int, seed: int):
        self.errors = RetainedError()
        self._factor = factor
        self._kept = []  # of an iterable, which may not be read twice
        self._array = images if hasattr(images, "shape") else None
        if self._array is None:
            self._source = images
            return
        self._array = self._checked(images)
        if batch_size > len(self._array):
            raise ValueError(
                f"A batch must not exceed the {len(self._array)} images; make it smaller. "
                f"Received: batch_size={batch_size}"
            )
        self._source = _Shuffled(self._array, batch_size, seed)

    def batches(self) -> Iterator[tuple[np.ndarray]]:
        """Yields what `fit` takes."""
        with self.errors.retained():
            while True:
                ended = True
                for batch in self._source:
                    ended = False
                    if self._array is None:
                        batch = self._checked(_images(batch))
                        if sum(map(len, self._kept)) < _MEASURED:
                            self._kept.append(batch)
                    yield (batch,)
                if ended:
                    raise ValueError(
                        "There must be batches of images for all steps: give an array, or an "
                        "iterable that can be begun again. "
                        f"Received: images={self._source!r}, which ended"
                    )

    def sample(self) -> np.ndarray:
        """Returns 1,000 of the images, or all if there are fewer."""
        if self._array is None:
            return np.concatenate(self._kept)[:_MEASURED]
        total = len(self._array)
        return self._array[evenly_spaced(min(_MEASURED, total), total)]

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if (
            images.dtype.kind != "f"
            or images.ndim != 4
            or images.size == 0
            or images.shape[3] != 3
            or any(side % self._factor for side in images.shape[1:3])
        ):
            raise ValueError(
                "Images must be floats (N, H, W, 3) in [-1, 1], H and W multiples of "
                f"{self._factor}; bring uint8 images there by x / 127.5 - 1. "
                f"Received: images of shape {images.shape}, dtype {images.dtype}"
            )
        low, high = float(images.min()), float(images.max())
        if not -1.001 <= low <= high <= 1.001:  # nor if they are not finite
            raise ValueError(
                "Images must be finite and lie in [-1, 1]. "
                f"Received: images from {low:g} to {high:g}"
            )
        return images.astype(np.float32, copy=False)


class _Shuffled:
    """Batches of an array, shuffled anew in each pass."""

    def __init__(self, images: np.ndarray, batch_size: int, seed: int):
        self._images, self._batch_size = images, batch_size
        self._rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self._rng.permutation(len(self._images))
        for start in range(0, len(order) - self._batch_size + 1, self._batch_size):
            yield self._images[order[start : start + self._batch_size]]


def _images(batch: object) -> object:
    if isinstance(batch, dict) and "image" not in batch:
        raise ValueError(
            f"A batch that is a dict must have its images under 'image'. Received: {sorted(batch)}"
        )
    return batch["image"] if isinstance(batch, dict) else batch


def _rate(highest: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    warmup = min(100, steps // 10)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(highest, steps)
    return keras.optimizers.schedules.CosineDecay(
        highest / warmup, steps - warmup, warmup_target=highest, warmup_steps=warmup
    )


def _latent_std(autoencoder: Autoencoder, images: np.ndarray, seed: int) -> float:
    """The standard deviation of drawn latents, 16 images at a time."""
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, len(images), 16):
        mean, std = np.split(autoencoder.moments(images[start : start + 16]), 2, axis=-1)
        drawn.append(mean + std * rng.standard_normal(mean.shape, np.float32))
    return float(np.std(np.concatenate(drawn), dtype=np.float64))


def _check(steps: int, batch_size: int, learning_rate: float, kl_weight: float, seed: int) -> None:
    check_integer("steps", steps)
    check_integer("batch_size", batch_size)
    check_integer("seed", seed, 0)
    if not 0 < learning_rate < np.inf:
        raise ValueError(
            f"The learning rate must be positive. Received: learning_rate={learning_rate!r}"
        )
    if not 0 <= kl_weight < np.inf:
        raise ValueError(f"kl_weight must be at least 0. Received: kl_weight={kl_weight!r}")

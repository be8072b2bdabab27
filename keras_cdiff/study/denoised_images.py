"""Real images, noised to the top of an interval and denoised again, to judge an expert by."""

from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.arrays import fingerprint, network_weights
from keras_cdiff.data import to_uint8
from keras_cdiff.evaluation import ImageSet
from keras_cdiff.samplers import Guidance, Sampler
from keras_cdiff.samplers.sample import estimator
from keras_cdiff.schedules import DiscreteSchedule, Schedule


class DenoisedImages(ImageSet):
    """Images noised to the top of an interval, denoised through it by an expert, and finished from
    there by a reference model, along one sampler's levels. Image i has the noise of `seed` + i.

    Args:
        expert: the `DiffusionModel` to be judged.
        reference: the one that finishes, with the average of its weights if it keeps one.
        images: float32 (N, H, W, C) in [-1, 1].
        labels: their classes (N,), or None for an unconditional model.
        interval: the noise levels [low, high) of the expert.
        sampler: its levels below the interval's top are visited, and the interval's ends.
        use_ema: whether the expert predicts with its averaged weights, if it keeps an average;
            short training is hidden by a long average.
        seed: >= 0.
        batch_size: images at once.
        name: what the set is called in results.
    """

    def __init__(
        self,
        expert: keras.Model,
        reference: keras.Model,
        images: np.ndarray,
        labels: np.ndarray | None,
        interval: tuple[float, float],
        sampler: Sampler,
        use_ema: bool = False,
        seed: int = 0,
        batch_size: int = 64,
        name: str = "denoised",
    ):
        self.expert, self.reference = expert, reference
        self.images, self.labels = images, labels
        self.interval = tuple(map(float, interval))
        self.sampler = through_interval(sampler, expert.schedule, self.interval)
        self.use_ema = (
            use_ema and expert.ema_backbone is not None,
            reference.ema_backbone is not None,
        )
        self.seed, self.batch_size, self.name = seed, batch_size, name

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, start: int, batch_size: int) -> Iterator[np.ndarray]:
        for first in range(start, len(self), self.batch_size):
            # The last batch is filled up, so that nothing compiles again.
            rows = np.minimum(np.arange(first, first + self.batch_size), len(self) - 1)
            images = self._denoise(rows)[: len(self) - first]
            if not np.isfinite(images).all():
                raise FloatingPointError(f"The denoised images of {self.name!r} are not finite.")
            yield to_uint8(images)

    def _denoise(self, rows: np.ndarray) -> np.ndarray:
        schedule, shape = self.expert.schedule, self.images.shape[1:]
        generators = [np.random.Generator(np.random.Philox(key=self.seed + int(r))) for r in rows]

        def draw_noise() -> np.ndarray:
            return np.stack([g.standard_normal(shape, dtype="float32") for g in generators])

        condition = {} if self.labels is None else {"label": self.labels[rows].astype("int32")}

        def denoise(x: object, level: float) -> dict:
            below = level < self.interval[0]
            model, use_ema = (self.expert, self.reference)[below], self.use_ema[below]
            inputs = {"x": x, "level": np.full(len(x), level, dtype="float32"), **condition}
            answer = estimator(model, use_ema, Guidance(1.0))(inputs, most=len(x))
            return {"variance": None, **{k: ops.convert_to_tensor(v) for k, v in answer.items()}}

        alpha, sigma = schedule.alpha_sigma(self.sampler.levels(schedule)[:1])
        x = np.float32(alpha) * self.images[rows] + np.float32(sigma) * draw_noise()
        for step in self.sampler.trajectory(denoise, x, schedule, draw_noise):
            x, _ = step
        return ops.convert_to_numpy(x)

    def describe(self) -> dict:
        return {
            "images": self.name,
            "count": len(self),
            "image_size": list(self.images.shape[1:3]),
            "interval": list(self.interval),
            "use_ema": self.use_ema[0],
            "sampler": type(self.sampler).__name__,
            "levels": self.sampler.spacing,
            "seeds": [self.seed, self.seed + len(self) - 1],
        }

    def digest(self) -> str:
        networks = [
            model.network(use_ema)
            for model, use_ema in zip((self.expert, self.reference), self.use_ema, strict=True)
        ]
        labels = repr(None if self.labels is None else np.asarray(self.labels).tolist())
        return fingerprint(repr(self.describe()), self.images, labels, *network_weights(*networks))


def through_interval(
    sampler: Sampler, schedule: Schedule, interval: tuple[float, float]
) -> Sampler:
    """Returns a sampler like `sampler` that starts at the top of an interval [low, high), which may
    end beyond the schedule's bounds, and visits its lower end.
    """
    low, high = interval
    lowest, highest = schedule.bounds
    top = min(high, highest) - (1.0 if isinstance(schedule, DiscreteSchedule) else 0.0)
    levels = [level for level in sampler.levels(schedule).tolist() if level < top]
    ends = [top, low] if lowest < low < top else [top]
    levels = sorted({*levels, *ends}, reverse=True)
    return type(sampler).from_config({**sampler.get_config(), "spacing": levels})

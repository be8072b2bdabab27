"""sample(): images from a model, under classifier-free guidance."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.batch_function import BatchFunction, fill, model_function
from keras_cdiff.common.checks import check_integer
from keras_cdiff.model.checks import check_contexts
from keras_cdiff.samplers.ddim import DDIM
from keras_cdiff.samplers.euler import Heun
from keras_cdiff.samplers.sampler import Denoise, Sampler
from keras_cdiff.schedules import DiscreteSchedule, RectifiedFlow


@keras.saving.register_keras_serializable("keras_cdiff")
class Guidance:
    """Classifier-free guidance: out = uncond + w (cond - uncond).

    w = 1 is the conditional model alone, at one network evaluation instead of two; w = 0 is the
    unconditional one.

    Args:
        scale: w >= 0.
        channels: how many of the first channels are guided; None for all. The others, and a learned
            variance, stay conditional.
        interval: (low, high), the levels in [low, high) that are guided, in the schedule's native
            coordinate; low and high may be infinite. Elsewhere w is 1, at one network evaluation.
            None for all levels.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, equation 6; their w is ours
        less 1. The interval: Kynkaanniemi et al., "Applying Guidance in a Limited Interval Improves
        Sample and Distribution Quality in Diffusion Models", 2024, equation 5.
    """

    def __init__(
        self,
        scale: float,
        channels: int | None = None,
        interval: tuple[float, float] | None = None,
    ):
        if not _is_number(scale) or not 0.0 <= scale < math.inf:
            raise ValueError(
                "The guidance scale must be a finite number, not negative (1 is no guidance). "
                f"Received: scale={scale!r}"
            )
        if channels is not None:
            channels = check_integer("channels", channels, meaning="or None to guide all channels")
        if interval is not None and not _is_interval(interval):
            raise ValueError(
                "`interval` must be two levels (low, high) with low < high, or None to guide at "
                f"all levels. Received: interval={interval!r}"
            )
        self.scale = float(scale)
        self.channels = channels
        self.interval = None if interval is None else tuple(float(level) for level in interval)

    @classmethod
    def official_dit(cls, scale: float) -> "Guidance":
        """Returns the official DiT samples' guidance, of the first three channels only."""
        return cls(scale, channels=3)

    @classmethod
    def of(cls, guidance: "float | Guidance") -> "Guidance":
        """Returns `guidance` itself, or for a plain number that scale on all channels."""
        return guidance if isinstance(guidance, Guidance) else cls(guidance)

    @property
    def active(self) -> bool:
        """Whether the unconditional estimate is needed, at some level at least."""
        return self.scale != 1.0

    def covers(self, level: object) -> object:
        """Returns whether `level` lies in the interval, elementwise for a tensor."""
        low, high = self.interval or (-math.inf, math.inf)
        return (level >= low) & (level < high)

    def scale_at(self, level: object) -> keras.KerasTensor:
        """Returns w at `level`, a tensor of any shape, as float32: 1 outside of the interval."""
        level = ops.cast(level, "float32")
        scale = ops.full_like(level, self.scale)
        return ops.where(self.covers(level), scale, ops.ones_like(level))

    def get_config(self) -> dict:
        interval = None if self.interval is None else list(self.interval)
        return {"scale": self.scale, "channels": self.channels, "interval": interval}

    @classmethod
    def from_config(cls, config: dict) -> "Guidance":
        return cls(**config)


def sample(
    model: keras.Model,
    num_samples: int,
    sampler: Sampler | None = None,
    *,
    seed: int | Sequence[int] = 0,
    label: int | Sequence[int] | None = None,
    context: np.ndarray | None = None,
    guidance: float | Guidance = 1.0,
    use_ema: bool = True,
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """Draws images from a model.

    Sample i is a function of its own seed, label and context: beyond rounding neither the batch
    size nor its place changes it, and its noise is the same on every backend.

    Args:
        model: a `DiffusionModel`.
        num_samples: number of images N >= 1.
        sampler: how; by default `DDIM(50)` on discrete timesteps, with estimates clamped for images
            of 1 or 3 channels but not for latents; `Heun(25, coordinate="level")` on
            `RectifiedFlow`, as many network calls; and `Heun(18)` on other schedules.
        seed: seed of the first sample, the others follow by ones; or N seeds; >= 0.
        label: class of all samples or N classes, each in 0..num_classes, where num_classes is the
            null label, if training dropped labels. None: the null label.
        context: conditioning sequence of all samples, (L, D), or one each, (N, L, D), such as a
            text encoder's `encode` returns; rows of zeros are padding. None: the null context.
        guidance: scale w >= 0 of classifier-free guidance, 1 for none, or a `Guidance`.
        use_ema: whether the averaged weights are used, if the model keeps an average.
        batch_size: samples drawn at once; the last batch is filled up, so that nothing compiles
            again.
        progress: whether a progress bar over all steps of all batches is shown.

    Returns:
        float32 array (N, H, W, C) in the model's units: images in about [-1, 1], or latents.

    Raises:
        ValueError: if an argument is out of its range or does not fit the model.
    """
    check_integer("num_samples", num_samples)
    check_integer("batch_size", batch_size)
    sampler = sampler or default_sampler(model)
    guidance = Guidance.of(guidance)
    use_ema = use_ema and model.ema_backbone is not None
    check_options(model, sampler, guidance, label is not None, context is not None)
    seeds = _seeds(seed, num_samples)
    condition = _condition(model, num_samples, label, context)
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # within fit() on JAX the weights are not on the model

    size = min(batch_size, num_samples)
    num_steps = len(sampler.levels(model.schedule))
    starts = range(0, num_samples, size)
    bar = keras.utils.Progbar(len(starts) * num_steps) if progress else None
    images = np.empty((num_samples, *model.image_shape), dtype="float32")
    for start in starts:
        rows = slice(start, min(start + size, num_samples))
        draw_noise = _noise(seeds[rows], size, model.image_shape)
        filled = {name: fill(value[rows], size) for name, value in condition.items()}
        denoise = _denoise(model, use_ema, filled, guidance)
        noisiest = sampler.initial_scale(model.schedule) * draw_noise()
        for step in sampler.trajectory(denoise, noisiest, model.schedule, draw_noise):
            x, _ = step
            if bar is not None:
                bar.add(1)
        images[rows] = ops.convert_to_numpy(x)[: rows.stop - start]
    return images


def default_sampler(model: keras.Model) -> Sampler:
    """Returns the sampler that `sample` uses on `model` unless it is given one."""
    if isinstance(model.schedule, DiscreteSchedule):
        return DDIM(50, clip=not model.is_latent)
    if isinstance(model.schedule, RectifiedFlow):
        return Heun(25, coordinate="level")
    return Heun(18)


def check_options(
    model: keras.Model, sampler: Sampler, guidance: Guidance, label: bool, context: bool
) -> None:
    """Raises a ValueError unless the model can be sampled so; `label` and `context` say whether it
    is conditioned on them.
    """
    sampler.check(model.parameterization.learned_variance)
    table = sampler.table(model.schedule)
    _check_levels(model, table["level"])
    if guidance.active:
        levels = np.append(table["level"], table["next_level"])
        _check_guidance(model, guidance, label, context, levels)


def _check_levels(model: keras.Model, levels: np.ndarray) -> None:
    """Raises if the network's output stands for no clean image at one of the levels."""
    c_skip, c_out, _, _ = model.parameterization.coefficients(levels, model.schedule)
    finite = ops.convert_to_numpy(ops.isfinite(c_skip) & ops.isfinite(c_out))
    if not np.all(finite):
        parameterization, schedule = (
            type(part).__name__ for part in (model.parameterization, model.schedule)
        )
        raise ValueError(
            f"With {parameterization} no clean image can be estimated at level "
            f"{levels[~finite][0]} of {schedule}, which holds no signal or no noise: build the "
            "model with a parameterization such as Velocity, or give the sampler levels between "
            f"as `spacing`. Received: parameterization={parameterization}, schedule={schedule}"
        )


def _check_guidance(
    model: keras.Model, guidance: Guidance, label: bool, context: bool, levels: np.ndarray
) -> None:
    """Raises if active guidance does not fit the model, or the levels at which it is used."""
    if not label and not context:
        raise ValueError(
            "Guidance strengthens a condition: give `label` or `context`, or leave guidance at 1. "
            f"Received: guidance={guidance.scale}, label=None, context=None"
        )
    channels = model.image_shape[-1]
    if guidance.channels is not None and guidance.channels > channels:
        raise ValueError(
            f"Guidance can be of at most the model's {channels} channels: give fewer, or None for "
            f"all. Received: channels={guidance.channels}, for a model of {channels} channels"
        )
    if label and model.num_classes > 0 and model.network_inputs.null_label is None:
        raise ValueError(
            "Guidance by label needs the null label, which this network never saw in training: "
            "train with label_dropout > 0, or leave guidance at 1. "
            f"Received: guidance={guidance.scale}, label_dropout=0"
        )
    if context and not model.network_inputs.learns_null_context:
        raise ValueError(
            "Guidance by context needs the null context, which this network never saw in training: "
            "train with context_dropout > 0, or leave guidance at 1. "
            f"Received: guidance={guidance.scale}, context_dropout=0"
        )
    if not np.any(guidance.covers(levels)):
        raise ValueError(
            "The guidance's `interval` must hold at least one of the sampler's levels, which lie "
            f"between {levels.min():g} and {levels.max():g}: widen it, or leave guidance at 1. "
            f"Received: interval={guidance.interval}"
        )


def _denoise(model: keras.Model, use_ema: bool, condition: dict, guidance: Guidance) -> Denoise:
    """Returns (x, level) -> estimate for one batch."""

    def denoise(x: object, level: float) -> dict:
        # Outside of the guidance's interval the network is called once instead of twice.
        here = guidance if guidance.covers(level) else Guidance(1.0)
        inputs = {"x": x, "level": np.full(len(x), level, dtype="float32"), **condition}
        if here.active:
            inputs["guidance"] = np.float32(here.scale)
        estimate = estimator(model, use_ema, here)(inputs, most=len(x))
        estimate = {name: ops.convert_to_tensor(value) for name, value in estimate.items()}
        return {"variance": None, **estimate}

    return denoise


def estimator(model: keras.Model, use_ema: bool, guidance: Guidance) -> BatchFunction:
    """Returns `model.estimate` as a compiled function of x, level, label, context and the
    guidance's scale; the same one for the same arguments.
    """
    return model_function(model, _estimate, use_ema, guidance.channels)


def _estimate(model: keras.Model, inputs: dict, use_ema: bool, channels: int | None) -> dict:
    found = model.estimate(**inputs, guidance_channels=channels, use_ema=use_ema)
    return {name: value for name, value in found.items() if value is not None}


def _noise(seeds: Sequence[int], size: int, shape: tuple) -> Callable[[], np.ndarray]:
    """Returns a function that draws unit normal noise (size, *shape), each sample's by its seed."""
    generators = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]

    def draw() -> np.ndarray:
        blocks = [generator.standard_normal(shape, dtype="float32") for generator in generators]
        return fill(np.stack(blocks), size)

    return draw


def _seeds(seed: int | Sequence[int], num_samples: int) -> list[int]:
    if isinstance(seed, int | np.integer):
        seeds = [int(seed) + i for i in range(num_samples)]
    else:
        seeds = list(seed)
    integers = all(isinstance(s, int | np.integer) and 0 <= s < 2**128 for s in seeds)
    if not integers or len(seeds) != num_samples:
        raise ValueError(
            f"`seed` must be an integer >= 0 or {num_samples} of them, one a sample. "
            f"Received: seed={seed!r}"
        )
    return [int(s) for s in seeds]


def _condition(
    model: keras.Model,
    num_samples: int,
    label: int | Sequence[int] | None,
    context: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Returns the label and the context of each sample, as far as the model takes them."""
    condition = {}
    if label is not None or model.num_classes > 0:
        condition["label"] = _labels(model, num_samples, label)
    if context is not None:
        context = np.asarray(context, dtype="float32")
        if context.ndim not in (2, 3) or (context.ndim == 3 and len(context) != num_samples):
            raise ValueError(
                f"`context` must have shape (L, D) or ({num_samples}, L, D). "
                f"Received: context with shape {context.shape}"
            )
        check_contexts(context.reshape(-1, *context.shape[-2:]), model.network_inputs.context_width)
        condition["context"] = np.broadcast_to(context, (num_samples, *context.shape[-2:]))
    return condition


def _labels(model: keras.Model, num_samples: int, label: int | Sequence[int] | None) -> np.ndarray:
    num_classes, null = model.num_classes, model.network_inputs.null_label
    if num_classes == 0:
        raise ValueError(
            "This model has no classes: leave `label` at None, or build the backbone with "
            f"num_classes. Received: label={label!r}"
        )
    if label is None and null is None:
        raise ValueError(
            "Without `label` samples are drawn under the null label, which this network never saw "
            f"in training: give a label in 0..{num_classes - 1}. Received: label=None"
        )
    labels = np.asarray(null if label is None else label)
    fits = labels.ndim == 0 or labels.shape == (num_samples,)
    highest = num_classes - 1 if null is None else null
    if not fits or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > highest:
        explained = "" if null is None else f" ({null} is the null label)"
        raise ValueError(
            f"`label` must be an integer, or {num_samples} of them, in 0..{highest}{explained}. "
            f"Received: label={label!r}"
        )
    return np.broadcast_to(labels, (num_samples,)).astype("int32")


def _is_number(value: object) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def _is_interval(value: object) -> bool:
    pair = isinstance(value, tuple | list | np.ndarray) and len(value) == 2
    return pair and all(map(_is_number, value)) and bool(value[0] < value[1])

"""Classifier-free guidance."""

import math

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.checks import check_integer


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


def _is_number(value: object) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def _is_interval(value: object) -> bool:
    pair = isinstance(value, tuple | list | np.ndarray) and len(value) == 2
    return pair and all(map(_is_number, value)) and bool(value[0] < value[1])

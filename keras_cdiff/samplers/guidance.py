"""Classifier-free guidance."""

import math

import keras


@keras.saving.register_keras_serializable("keras_cdiff")
class Guidance:
    """Classifier-free guidance: out = uncond + w (cond - uncond).

    w = 1 is the conditional model alone, at one network evaluation instead of two; w = 0 is the
    unconditional one.

    Args:
        scale: w >= 0.
        channels: how many of the first channels are guided; None for all. The others, and a learned
            variance, stay conditional.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, equation 6; their w is ours
        less 1.
    """

    def __init__(self, scale: float, channels: int | None = None):
        if not 0.0 <= scale < math.inf:
            raise ValueError(
                "The guidance scale must be finite and not negative (1 is no guidance). "
                f"Received: scale={scale}"
            )
        if channels is not None and channels < 1:
            raise ValueError(
                "`channels` must be at least 1, or None to guide all channels. "
                f"Received: channels={channels}"
            )
        self.scale = float(scale)
        self.channels = channels

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
        """Whether the unconditional estimate is needed."""
        return self.scale != 1.0

    def get_config(self) -> dict:
        return {"scale": self.scale, "channels": self.channels}

    @classmethod
    def from_config(cls, config: dict) -> "Guidance":
        return cls(**config)

"""Decay profiles of the exponential moving averages of the weights.

Each training step does: average = decay average + (1 - decay) weights.
"""

import abc
import math

import keras
import numpy as np
from keras import ops

Tensor = keras.KerasTensor


class Decay(abc.ABC):
    """Base of all decay profiles."""

    @abc.abstractmethod
    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        """Returns the decay in [0, 1) of the update that follows training step `iteration`, counted
        from 1.
        """

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        """Returns 1 - decay, the share of the new weights, where possible without cancellation."""
        return 1.0 - self(iteration, batch_size)

    @abc.abstractmethod
    def get_config(self) -> dict:
        """Returns the constructor's arguments."""

    @classmethod
    def from_config(cls, config: dict) -> "Decay":
        return cls(**config)


@keras.saving.register_keras_serializable("keras_cdiff")
class FixedDecay(Decay):
    """The same decay at every step, as in DiT.

    Args:
        decay: in [0, 1).

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, section 4
        (0.9999).
    """

    def __init__(self, decay: float = 0.9999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1). Received: decay={decay}")
        self.decay = float(decay)

    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.convert_to_tensor(self.decay, dtype="float32")

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.convert_to_tensor(1.0 - self.decay, dtype="float32")

    def get_config(self) -> dict:
        return {"decay": self.decay}


@keras.saving.register_keras_serializable("keras_cdiff")
class WarmupDecay(Decay):
    """A half-life that grows with the images seen until it reaches its final value, as in EDM.

    halflife_now = min(halflife, rampup images_before), decay = 0.5^(batch_size / halflife_now),
    where images_before is the number of images seen before the step: the first update copies the
    weights, early ones forget the random initial weights, later the average becomes long.

    Args:
        halflife: final half-life in images, > 0.
        rampup: half-life as a fraction of the images seen, > 0.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, appendix F (training configurations), counting as its published training does.
    """

    def __init__(self, halflife: float = 500_000, rampup: float = 0.05):
        if not 0.0 < halflife < math.inf:
            raise ValueError(
                f"`halflife` must be positive and finite, in images. Received: halflife={halflife}"
            )
        if not 0.0 < rampup < math.inf:
            raise ValueError(
                "`rampup` must be positive and finite, a fraction of the images seen. "
                f"Received: rampup={rampup}"
            )
        self.halflife = float(halflife)
        self.rampup = float(rampup)

    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.exp(self._log_decay(iteration, batch_size))

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return -ops.expm1(self._log_decay(iteration, batch_size))

    def _log_decay(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        batch_size = ops.cast(batch_size, "float32")
        images_before = (ops.cast(iteration, "float32") - 1.0) * batch_size
        halflife = ops.minimum(self.rampup * images_before, self.halflife)
        return -math.log(2.0) * batch_size / ops.maximum(halflife, 1e-8)

    def get_config(self) -> dict:
        return {"halflife": self.halflife, "rampup": self.rampup}


@keras.saving.register_keras_serializable("keras_cdiff")
class PowerDecay(Decay):
    """An average whose length grows with training: step k of t counts in proportion to k^gamma.

    decay = (1 - 1 / t)^(gamma + 1) after step t. The width is the standard deviation of the
    profile as a fraction of the training so far, sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).
    From stored averages of one or more widths `reconstruct` makes those of others.

    Args:
        width: in (0, 1 / sqrt(12)], the upper end being the plain mean of all steps.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
        2024, section 3.1 and appendix C.
    """

    def __init__(self, width: float = 0.1):
        self.exponent = power_exponent(width)
        self.width = float(width)

    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.exp(self._log_decay(iteration))

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return -ops.expm1(self._log_decay(iteration))

    def _log_decay(self, iteration: Tensor) -> Tensor:
        # -infinity at the first step: that update copies the weights.
        return (self.exponent + 1.0) * ops.log1p(-1.0 / ops.cast(iteration, "float32"))

    def get_config(self) -> dict:
        return {"width": self.width}


def power_exponent(width: float) -> float:
    """Returns the exponent gamma >= 0 of the power-function profile of a relative width.

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / width^2 (Karras et al.,
    2024, appendix C.1).

    Raises:
        ValueError: if the width is not in (0, 1 / sqrt(12)].
    """
    if not 0.0 < width <= 12**-0.5 + 1e-12:
        raise ValueError(
            "`width` must lie in (0, 1 / sqrt(12) = 0.2887], a fraction of the training so far. "
            f"Received: width={width}"
        )
    precision = float(width) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision])
    return max(0.0, float(np.max(roots.real)))

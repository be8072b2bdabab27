"""Decay profiles of the exponential moving average of the weights: average = decay average + (1 -
decay) weights.
"""

import abc
import math

import keras
from keras import ops

Tensor = keras.KerasTensor


class Decay(abc.ABC):
    """Base of all decay profiles."""

    @abc.abstractmethod
    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        """Returns the decay in [0, 1) of the update that follows training step `iteration`, counted
        from 1.
        """

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

    def get_config(self) -> dict:
        return {"decay": self.decay}


@keras.saving.register_keras_serializable("keras_cdiff")
class WarmupDecay(Decay):
    """A half-life that grows with the images seen until it reaches its final value, as in EDM.

    halflife_now = min(halflife, rampup images_seen), decay = 0.5^(batch_size / halflife_now): early
    in training the average forgets the random initial weights, later it becomes long.

    Args:
        halflife: final half-life in images, > 0.
        rampup: half-life as a fraction of the images seen, > 0.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, appendix F.1.
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
        batch_size = ops.cast(batch_size, "float32")
        images = ops.cast(iteration, "float32") * batch_size
        halflife = ops.minimum(self.rampup * images, self.halflife)
        return ops.exp(-math.log(2.0) * batch_size / halflife)

    def get_config(self) -> dict:
        return {"halflife": self.halflife, "rampup": self.rampup}

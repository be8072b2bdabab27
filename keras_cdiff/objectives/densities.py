"""Densities over noise levels, each with the weighting of the losses there.

A density maps uniform numbers u in [0, 1) to levels through its inverse distribution function, so
restricting it to an interval [low, high) is exact: u is mapped into [F(low), F(high)) first.
"""

import abc
import math

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.checks import check_integer
from keras_cdiff.objectives.normal import host_quantile, open_uniform, truncated_normal
from keras_cdiff.objectives.weightings import Constant, EDMWeight, Weighting, positive
from keras_cdiff.schedules.continuous import check_sigmas

Tensor = keras.KerasTensor


class Objective(abc.ABC):
    """Base of all objectives: a density over noise levels and a weighting.

    Args:
        weighting: a `Weighting`.

    Attributes:
        coordinate: what a level is, the same as the schedule's.
    """

    coordinate = "level"

    def __init__(self, weighting: Weighting):
        if not isinstance(weighting, Weighting):
            raise ValueError(
                "`weighting` must be a Weighting such as keras_cdiff.objectives.MinSNR(5.0). "
                f"Received: weighting={weighting!r}"
            )
        self.weighting = weighting

    @property
    @abc.abstractmethod
    def support(self) -> tuple[float, float]:
        """The interval [low, high) of levels that the density can draw."""

    @abc.abstractmethod
    def draw(self, uniform: Tensor, interval: Tensor) -> Tensor:
        """Returns the levels, float32, that `uniform` in [0, 1) selects in the density restricted
        to `interval`.

        Args:
            uniform: (B,), in [0, 1).
            interval: (2,), [low, high) in the native coordinate, within `support`.
        """

    @abc.abstractmethod
    def host_quantile(self, probability: np.ndarray) -> np.ndarray:
        """Returns the levels below which `probability`, in [0, 1], of the density lies (float64, on
        the host).
        """

    def get_config(self) -> dict:
        return {"weighting": keras.saving.serialize_keras_object(self.weighting)}

    @classmethod
    def from_config(cls, config: dict) -> "Objective":
        config = dict(config)
        config["weighting"] = keras.saving.deserialize_keras_object(config["weighting"])
        return cls(**config)


@keras.saving.register_keras_serializable("keras_cdiff")
class UniformTimesteps(Objective):
    """Every timestep is as likely as any other: t = low + floor(u (high - low)).

    Args:
        num_timesteps: T of the schedule.
        weighting: defaults to `Constant()`.
    """

    coordinate = "timestep"

    def __init__(self, num_timesteps: int = 1000, weighting: Weighting | None = None):
        super().__init__(weighting or Constant())
        self.num_timesteps = check_integer(
            "num_timesteps", num_timesteps, meaning="that of the schedule"
        )

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, float(self.num_timesteps)

    def draw(self, uniform: Tensor, interval: Tensor) -> Tensor:
        low, high = interval[0], interval[1]
        # u (high - low) can round up to high - low in float32.
        return ops.minimum(low + ops.floor(uniform * (high - low)), high - 1.0)

    def host_quantile(self, probability: np.ndarray) -> np.ndarray:
        return np.round(np.asarray(probability, dtype=np.float64) * self.num_timesteps)

    def get_config(self) -> dict:
        return {"num_timesteps": self.num_timesteps, **super().get_config()}


@keras.saving.register_keras_serializable("keras_cdiff")
class UniformTime(Objective):
    """Every time in [low, high) is as likely as any other, as for flows and the VP process.

    Args:
        low: lowest time, 0 <= low < high; for `VP` its `epsilon_t`, 1e-5.
        high: highest time, at most 1.
        weighting: defaults to `Constant()`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021, equation 7; Liu et al., "Flow Straight and Fast", 2023, equation 1.
    """

    coordinate = "time"

    def __init__(self, low: float = 0.0, high: float = 1.0, weighting: Weighting | None = None):
        super().__init__(weighting or Constant())
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                "Times must satisfy 0 <= low < high <= 1, the clean image and pure noise. "
                f"Received: low={low}, high={high}"
            )
        self.low = float(low)
        self.high = float(high)

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def draw(self, uniform: Tensor, interval: Tensor) -> Tensor:
        low, high = ops.maximum(interval[0], self.low), ops.minimum(interval[1], self.high)
        return _inside(low + open_uniform(uniform) * (high - low), low, high)

    def host_quantile(self, probability: np.ndarray) -> np.ndarray:
        probability = np.asarray(probability, dtype=np.float64)
        return self.low * (1.0 - probability) + self.high * probability

    def get_config(self) -> dict:
        return {"low": self.low, "high": self.high, **super().get_config()}


@keras.saving.register_keras_serializable("keras_cdiff")
class LogitNormalTime(Objective):
    """The logit of the time, ln(t / (1 - t)), is normal: t = sigmoid(mean + std z).

    Most draws are of the middle, where the direction from noise to image is hardest to tell; at t =
    0 is the image and at t = 1 the noise, as in its paper.

    Args:
        mean: mean of the logit; above 0 draws more noise.
        std: standard deviation of the logit, > 0.
        weighting: defaults to `Constant()`.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
        2024, section 3.1.
    """

    coordinate = "time"

    def __init__(self, mean: float = 0.0, std: float = 1.0, weighting: Weighting | None = None):
        super().__init__(weighting or Constant())
        self.mean = _finite("mean", mean)
        self.std = positive("std", std)

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, 1.0

    def draw(self, uniform: Tensor, interval: Tensor) -> Tensor:
        logit = ops.log(interval) - ops.log1p(-interval)
        z = (logit - self.mean) / self.std
        normal = truncated_normal(uniform, z[0], z[1])
        return _inside(ops.sigmoid(self.mean + self.std * normal), interval[0], interval[1])

    def host_quantile(self, probability: np.ndarray) -> np.ndarray:
        logit = self.mean + self.std * host_quantile(probability)
        return np.exp(-np.logaddexp(0.0, -logit))

    def get_config(self) -> dict:
        return {"mean": self.mean, "std": self.std, **super().get_config()}


@keras.saving.register_keras_serializable("keras_cdiff")
class LogNormalSigma(Objective):
    """EDM's density: ln sigma is normal with mean p_mean and standard deviation p_std.

    Restricted to [low, high): ln sigma = p_mean + p_std Phi^-1(u), u uniform on [Phi(z_low),
    Phi(z_high)), z = (ln sigma - p_mean) / p_std.

    Args:
        p_mean: mean of ln sigma.
        p_std: standard deviation of ln sigma, > 0.
        weighting: defaults to `EDMWeight(0.5)`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, table 1.
    """

    coordinate = "sigma"

    def __init__(
        self, p_mean: float = -1.2, p_std: float = 1.2, weighting: Weighting | None = None
    ):
        super().__init__(weighting or EDMWeight(0.5))
        self.p_mean = _finite("p_mean", p_mean)
        self.p_std = positive("p_std", p_std)

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, math.inf

    def draw(self, uniform: Tensor, interval: Tensor) -> Tensor:
        z = (ops.log(interval) - self.p_mean) / self.p_std
        normal = truncated_normal(uniform, z[0], z[1])
        return _inside(ops.exp(self.p_mean + self.p_std * normal), interval[0], interval[1])

    def host_quantile(self, probability: np.ndarray) -> np.ndarray:
        return np.exp(self.p_mean + self.p_std * host_quantile(probability))

    def get_config(self) -> dict:
        return {"p_mean": self.p_mean, "p_std": self.p_std, **super().get_config()}


@keras.saving.register_keras_serializable("keras_cdiff")
class LogUniformSigma(Objective):
    """ln sigma is uniform between ln sigma_min and ln sigma_max, as the VE process was trained.

    Args:
        sigma_min: lowest sigma, > 0.
        sigma_max: highest sigma, > sigma_min.
        weighting: defaults to `Constant()`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021; as in Karras et al., "Elucidating the Design Space of Diffusion-Based
        Generative Models", 2022, table 1.
    """

    coordinate = "sigma"

    def __init__(
        self,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        weighting: Weighting | None = None,
    ):
        super().__init__(weighting or Constant())
        check_sigmas(sigma_min, sigma_max)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    @property
    def support(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def draw(self, uniform: Tensor, interval: Tensor) -> Tensor:
        lowest, highest = self.support
        low, high = ops.maximum(interval[0], lowest), ops.minimum(interval[1], highest)
        start, end = ops.log(low), ops.log(high)
        return _inside(ops.exp(start + uniform * (end - start)), low, high)

    def host_quantile(self, probability: np.ndarray) -> np.ndarray:
        probability = np.asarray(probability, dtype=np.float64)
        low, high = self.support
        return low ** (1.0 - probability) * high**probability

    def get_config(self) -> dict:
        config = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        return {**config, **super().get_config()}


@keras.saving.register_keras_serializable("keras_cdiff")
class LogUniformVariance(LogUniformSigma):
    """`LogUniformSigma` for the schedule `VE`, whose level is the variance sigma^2.

    Args:
        sigma_min: lowest sigma, > 0.
        sigma_max: highest sigma, > sigma_min.
        weighting: defaults to `Constant()`.
    """

    coordinate = "variance"

    @property
    def support(self) -> tuple[float, float]:
        return self.sigma_min**2, self.sigma_max**2


def _inside(level: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns levels that rounding moved out of [low, high), or to 0, moved back in."""
    below_high = high * (1.0 - 2.0**-24)  # the next smaller float32
    return ops.minimum(ops.maximum(level, ops.maximum(low, 1e-12)), below_high)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite. Received: {name}={value}")
    return float(value)

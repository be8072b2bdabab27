"""Objectives: which noise levels are drawn in training, and how their losses are weighted.

A density maps uniform numbers u in [0, 1) to levels through its inverse distribution function, so
restricting it to an interval [low, high) is exact: u is mapped into [F(low), F(high)) first.

Weights are defined in the space of the clean image, where they mean the same for every
parameterization: loss = w |clean - x_0|^2. A network's own output has an error smaller by c_out, so
    its loss carries w c_out^2.
"""

import abc
import math
import statistics

import keras
import numpy as np
from keras import ops

Tensor = keras.KerasTensor


class Weighting(abc.ABC):
    """Base of all weightings over noise levels."""

    @abc.abstractmethod
    def output_weight(self, log_snr: Tensor, c_out: Tensor) -> Tensor:
        """Returns the weight of the squared error of the network's output."""

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Weighting":
        return cls(**config)


class ImageWeighting(Weighting):
    """Base of the weightings that are defined in the space of the clean image."""

    @abc.abstractmethod
    def weight(self, log_snr: Tensor) -> Tensor:
        """Returns the weight of the clean image's squared error at `log_snr`."""

    def output_weight(self, log_snr: Tensor, c_out: Tensor) -> Tensor:
        return self.weight(log_snr) * ops.square(c_out)


@keras.saving.register_keras_serializable("keras_cdiff")
class Constant(Weighting):
    """Weight 1 on the network's own output, whatever it predicts: the loss of DDPM and of DiT.

    In the space of the clean image this is 1 / c_out^2, which depends on the parameterization.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equation 14.
    """

    def output_weight(self, log_snr: Tensor, c_out: Tensor) -> Tensor:
        return ops.ones_like(c_out)


@keras.saving.register_keras_serializable("keras_cdiff")
class MinSNR(ImageWeighting):
    """Min-SNR-gamma: w = min(SNR, gamma) on the clean image.

    On the output that is min(S, gamma) / S for `Epsilon`, min(S, gamma) / (S + 1) for `Velocity`.

    Args:
        gamma: cap on the signal-to-noise ratio, > 0.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
        section 3.4.
    """

    def __init__(self, gamma: float = 5.0):
        self.gamma = _positive("gamma", gamma)

    def weight(self, log_snr: Tensor) -> Tensor:
        return ops.exp(ops.minimum(log_snr, math.log(self.gamma)))

    def get_config(self) -> dict:
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable("keras_cdiff")
class P2(ImageWeighting):
    """P2: 1 / (k + SNR)^gamma on the noise, that is SNR / (k + SNR)^gamma on the clean image.

    Args:
        gamma: strength, >= 0; 0 is the simple loss.
        k: keeps the weight finite at high noise, > 0.

    Source: Choi et al., "Perception Prioritized Training of Diffusion Models", 2022, equation 8.
    """

    def __init__(self, gamma: float = 1.0, k: float = 1.0):
        if not 0.0 <= gamma < math.inf:
            raise ValueError(f"`gamma` must be finite and at least 0. Received: gamma={gamma}")
        self.gamma = float(gamma)
        self.k = _positive("k", k)

    def weight(self, log_snr: Tensor) -> Tensor:
        return ops.exp(log_snr - self.gamma * ops.logaddexp(log_snr, math.log(self.k)))

    def get_config(self) -> dict:
        return {"gamma": self.gamma, "k": self.k}


@keras.saving.register_keras_serializable("keras_cdiff")
class EDMWeight(ImageWeighting):
    """EDM's weight (s^2 + d^2) / (s d)^2 = SNR + 1 / d^2, with s = sigma / alpha, which is 1 /
    c_out^2.

    Args:
        sigma_data: standard deviation d of the data, > 0; the same as in `EDMPreconditioning`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, table 1.
    """

    def __init__(self, sigma_data: float = 0.5):
        self.sigma_data = _positive("sigma_data", sigma_data)

    def weight(self, log_snr: Tensor) -> Tensor:
        return ops.exp(log_snr) + 1.0 / self.sigma_data**2

    def get_config(self) -> dict:
        return {"sigma_data": self.sigma_data}


class Objective(abc.ABC):
    """Base of all objectives: a density over noise levels and a weighting.

    Args:
        weighting: a `Weighting`.
    """

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

    def __init__(self, num_timesteps: int = 1000, weighting: Weighting | None = None):
        super().__init__(weighting or Constant())
        if not isinstance(num_timesteps, int | np.integer) or num_timesteps < 1:
            raise ValueError(
                "`num_timesteps` must be an integer of at least 1, that of the schedule. "
                f"Received: num_timesteps={num_timesteps!r}"
            )
        self.num_timesteps = int(num_timesteps)

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

    def __init__(
        self, p_mean: float = -1.2, p_std: float = 1.2, weighting: Weighting | None = None
    ):
        super().__init__(weighting or EDMWeight(0.5))
        if not math.isfinite(p_mean):
            raise ValueError(f"`p_mean` must be finite. Received: p_mean={p_mean}")
        self.p_mean = float(p_mean)
        self.p_std = _positive("p_std", p_std)

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, math.inf

    def draw(self, uniform: Tensor, interval: Tensor) -> Tensor:
        z = (ops.log(interval) - self.p_mean) / self.p_std
        # Phi(z) loses its digits near 1, so both tails are reached through the side where they are
        # small numbers: above the median 1 - Phi(z) = Phi(-z) takes the place of Phi(z).
        upper = z[0] > 0.0
        side = ops.where(upper, -1.0, 1.0)
        low, high = _normal_cdf(side * z[0]), _normal_cdf(side * z[1])
        probability = low + uniform * (high - low)
        return ops.exp(self.p_mean + self.p_std * side * _normal_quantile(probability))

    def host_quantile(self, probability: np.ndarray) -> np.ndarray:
        inverse = statistics.NormalDist(self.p_mean, self.p_std).inv_cdf
        ends = {0.0: 0.0, 1.0: math.inf}
        levels = [
            ends[p] if p in ends else math.exp(inverse(p))
            for p in np.asarray(probability, dtype=np.float64).ravel().tolist()
        ]
        return np.reshape(levels, np.shape(probability))

    def get_config(self) -> dict:
        return {"p_mean": self.p_mean, "p_std": self.p_std, **super().get_config()}


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * ops.erfc(-z / math.sqrt(2.0))


def _normal_quantile(probability: Tensor) -> Tensor:
    """Phi^-1, exact to float32 in the lower tail, where 2 p - 1 has lost the digits of p, down to p
    = 1e-12.
    """
    probability = ops.clip(probability, 1e-12, 1.0 - 2.0**-24)
    z = math.sqrt(2.0) * ops.erfinv(2.0 * ops.maximum(probability, 2.0**-25) - 1.0)
    for _ in range(2):  # Newton's method on log Phi
        cdf = _normal_cdf(z)
        slope = ops.exp(-0.5 * ops.square(z)) / (math.sqrt(2.0 * math.pi) * cdf)
        z = z - (ops.log(cdf) - ops.log(probability)) / slope
    return z


def _positive(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite. Received: {name}={value}")
    return float(value)

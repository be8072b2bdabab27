"""Schedules: how much signal and how much noise an image holds at a noise level.

Every noisy image is x_t = alpha x_0 + sigma eps. A level is the schedule's native coordinate and
always grows with
noise: the timestep 0..T-1 for `LinearBeta` and `Cosine`, sigma itself for `EDM`.

The host-side numbers (`alpha_sigma`) are float64 NumPy; `alpha`, `sigma` and `log_snr` take tensors
and return float32 under every dtype policy.
"""

import abc

import keras
import numpy as np
from keras import ops


class Schedule(abc.ABC):
    """Base of all schedules: alpha, sigma and the log signal-to-noise ratio as functions of the
    noise level.
    """

    @property
    @abc.abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest noise level (for timesteps half-open: [0, T))."""

    @abc.abstractmethod
    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns alpha and sigma on the host, in float64, in the shape of `level`."""

    @abc.abstractmethod
    def alpha(self, level: object) -> keras.KerasTensor:
        """Returns the signal's scale alpha at `level`, float32."""

    @abc.abstractmethod
    def sigma(self, level: object) -> keras.KerasTensor:
        """Returns the noise's scale sigma at `level`, float32."""

    def log_snr(self, level: object) -> keras.KerasTensor:
        """Returns log SNR = 2 (log alpha - log sigma) at `level`, float32."""
        return 2.0 * (ops.log(self.alpha(level)) - ops.log(self.sigma(level)))

    def network_level(self, level: object) -> keras.KerasTensor:
        """Returns what a network without preconditioning of its own is told about `level`."""
        return ops.cast(level, "float32")

    def input_scale(self, level: object) -> keras.KerasTensor:
        """Returns the factor that keeps the network's input near unit variance, 1 / sqrt(alpha^2 +
        sigma^2).
        """
        return ops.rsqrt(ops.square(self.alpha(level)) + ops.square(self.sigma(level)))

    def velocity(self, level: object) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns (a, b) of the velocity v = a x_0 + b eps.

        On the unit circle (alpha, sigma) / sqrt(alpha^2 + sigma^2) this is v = alpha eps - sigma
        x_0 (Salimans and Ho, "Progressive Distillation", 2022, appendix D).
        """
        scale = self.input_scale(level)
        return -self.sigma(level) * scale, self.alpha(level) * scale

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Schedule":
        return cls(**config)


class DiscreteSchedule(Schedule):
    """A schedule of T timesteps given by its betas, the variance that each step adds.

    alpha_t^2 = prod_{s <= t} (1 - beta_s),  sigma_t^2 = 1 - alpha_t^2
    (Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equation 4).
    Fractional levels are interpolated between neighbouring timesteps.

    Attributes:
        num_timesteps: T.
        betas: float64 array (T,).
        alphas_cumprod: float64 array (T,), alpha_t^2.
    """

    def __init__(self, num_timesteps: int, betas: np.ndarray):
        self.num_timesteps = num_timesteps
        self.betas = betas
        self.alphas_cumprod = np.cumprod(1.0 - betas)
        self._alpha = np.sqrt(self.alphas_cumprod)
        self._sigma = np.sqrt(1.0 - self.alphas_cumprod)
        self._log_snr = np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod)

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, float(self.num_timesteps)

    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        timesteps = np.arange(self.num_timesteps)
        return np.interp(level, timesteps, self._alpha), np.interp(level, timesteps, self._sigma)

    def alpha(self, level: object) -> keras.KerasTensor:
        return self.lookup(self._alpha, level)

    def sigma(self, level: object) -> keras.KerasTensor:
        return self.lookup(self._sigma, level)

    def log_snr(self, level: object) -> keras.KerasTensor:
        return self.lookup(self._log_snr, level)

    def input_scale(self, level: object) -> keras.KerasTensor:
        return ops.ones_like(ops.cast(level, "float32"))  # alpha^2 + sigma^2 is 1

    def lookup(self, table: np.ndarray, level: object) -> keras.KerasTensor:
        """Returns `table`, one value a timestep, at `level`, interpolated linearly between
        timesteps.
        """
        level = ops.clip(ops.cast(level, "float32"), 0.0, self.num_timesteps - 1.0)
        below = ops.floor(level)
        fraction = level - below
        index = ops.cast(below, "int32")
        table = ops.convert_to_tensor(table, dtype="float32")
        left = ops.take(table, index)
        right = ops.take(table, ops.minimum(index + 1, self.num_timesteps - 1))
        return left + fraction * (right - left)

    def get_config(self) -> dict:
        return {"num_timesteps": self.num_timesteps}


def _check_timesteps(num_timesteps: int) -> int:
    if not isinstance(num_timesteps, int | np.integer) or num_timesteps < 1:
        raise ValueError(
            "`num_timesteps` must be an integer of at least 1. "
            f"Received: num_timesteps={num_timesteps!r}"
        )
    return int(num_timesteps)


@keras.saving.register_keras_serializable("keras_cdiff")
class LinearBeta(DiscreteSchedule):
    """The linear schedule of DDPM: beta from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T
    otherwise.

    Betas are capped at 0.999, which only a T below 21 reaches.

    Args:
        num_timesteps: T >= 1.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, section 4; the scaling by
        1000 / T from Nichol and Dhariwal, "Improved DDPM", 2021.
    """

    def __init__(self, num_timesteps: int = 1000):
        num_timesteps = _check_timesteps(num_timesteps)
        scale = 1000.0 / num_timesteps
        betas = np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)
        super().__init__(num_timesteps, np.minimum(betas, 0.999))


@keras.saving.register_keras_serializable("keras_cdiff")
class Cosine(DiscreteSchedule):
    """The cosine schedule: alpha^2 = f(t) / f(0), f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2),
    beta <= 0.999.

    Args:
        num_timesteps: T >= 1.

    Source: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, equation
        17.
    """

    def __init__(self, num_timesteps: int = 1000):
        num_timesteps = _check_timesteps(num_timesteps)
        time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
        signal = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        super().__init__(num_timesteps, np.minimum(1.0 - signal[1:] / signal[:-1], 0.999))


@keras.saving.register_keras_serializable("keras_cdiff")
class EDM(Schedule):
    """The schedule of EDM: alpha = 1 and the noise level is sigma itself.

    Args:
        sigma_min: lowest noise level that a sampler asks for, > 0.
        sigma_max: highest noise level, where a sampler starts, > sigma_min.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, table 1.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        if not 0.0 < sigma_min < sigma_max < float("inf"):
            raise ValueError(
                "Noise levels must satisfy 0 < sigma_min < sigma_max < infinity. "
                f"Received: sigma_min={sigma_min}, sigma_max={sigma_max}"
            )
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = np.asarray(level, dtype=np.float64)
        return np.ones_like(level), level

    def alpha(self, level: object) -> keras.KerasTensor:
        return ops.ones_like(ops.cast(level, "float32"))

    def sigma(self, level: object) -> keras.KerasTensor:
        return ops.cast(level, "float32")

    def log_snr(self, level: object) -> keras.KerasTensor:
        return -2.0 * ops.log(self.sigma(level))

    def network_level(self, level: object) -> keras.KerasTensor:
        return ops.log(self.sigma(level)) / 4.0

    def get_config(self) -> dict:
        return {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}

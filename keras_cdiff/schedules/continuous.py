"""Schedules whose level is any number of an interval: EDM, VP, VE and straight paths."""

import math

import keras
import numpy as np
from keras import ops

from keras_cdiff.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("keras_cdiff")
class EDM(Schedule):
    """The schedule of EDM: alpha = 1 and the noise level is sigma itself.

    Args:
        sigma_min: lowest noise level that a sampler visits, > 0.
        sigma_max: highest noise level, where a sampler starts, > sigma_min.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, table 1.
    """

    coordinate = "sigma"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        check_sigmas(sigma_min, sigma_max)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = np.asarray(level, dtype=np.float64)
        return np.ones_like(level), level

    def level_at(self, ratio: np.ndarray) -> np.ndarray:
        return np.maximum(np.asarray(ratio, dtype=np.float64), 0.0)

    def slopes(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = np.asarray(level, dtype=np.float64)
        return np.zeros_like(level), np.ones_like(level)

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


@keras.saving.register_keras_serializable("keras_cdiff")
class VP(Schedule):
    """The variance-preserving process in continuous time: alpha^2 + sigma^2 = 1, level t.

    With B(t) = beta_d t^2 / 2 + beta_min t: alpha = exp(-B / 2), sigma = sqrt(1 - exp(-B)),
    sigma / alpha = sqrt(exp(B) - 1). Levels outside [0, 1] count as the nearer end.

    Args:
        beta_d: growth of the noise's rate from t = 0 to t = 1, > 0.
        beta_min: the noise's rate at t = 0, > 0.
        epsilon_t: lowest level, where alpha and sigma still change at a finite rate, in (0, 1).

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021, appendix C; as in Karras et al., "Elucidating the Design Space of
        Diffusion-Based Generative Models", 2022, table 1.
    """

    coordinate = "time"

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5):
        if not (0.0 < beta_d < math.inf and 0.0 < beta_min < math.inf):
            raise ValueError(
                "The rates of noise `beta_d` and `beta_min` must be positive and finite. "
                f"Received: beta_d={beta_d}, beta_min={beta_min}"
            )
        if not 0.0 < epsilon_t < 1.0:
            raise ValueError(
                "`epsilon_t` must lie between 0 and 1, the times of the clean and of the noisiest "
                f"image. Received: epsilon_t={epsilon_t}"
            )
        self.beta_d = float(beta_d)
        self.beta_min = float(beta_min)
        self.epsilon_t = float(epsilon_t)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.epsilon_t, 1.0

    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exponent = self._exponent(np.clip(np.asarray(level, dtype=np.float64), 0.0, 1.0))
        return np.exp(-0.5 * exponent), np.sqrt(-np.expm1(-exponent))

    def level_at(self, ratio: np.ndarray) -> np.ndarray:
        # The root of B(t) = ln(1 + ratio^2), in the form in which nothing cancels at small t; an
        # infinite ratio would give infinity / infinity.
        ratio = np.minimum(np.asarray(ratio, dtype=np.float64), 1e100)
        exponent = np.log1p(np.square(ratio))
        root = np.sqrt(self.beta_min**2 + 2.0 * self.beta_d * exponent)
        return np.clip(2.0 * exponent / (root + self.beta_min), *self.bounds)

    def slopes(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = np.asarray(level, dtype=np.float64)
        alpha, sigma = self.alpha_sigma(level)
        half_rate = 0.5 * (self.beta_d * level + self.beta_min)
        return -half_rate * alpha, half_rate * np.square(alpha) / sigma

    def alpha(self, level: object) -> keras.KerasTensor:
        return ops.exp(-0.5 * self._exponent(_clip_time(level)))

    def sigma(self, level: object) -> keras.KerasTensor:
        return ops.sqrt(-ops.expm1(-self._exponent(_clip_time(level))))

    def log_snr(self, level: object) -> keras.KerasTensor:
        exponent = self._exponent(_clip_time(level))
        return -exponent - ops.log(-ops.expm1(-exponent))

    def network_level(self, level: object) -> keras.KerasTensor:
        return 999.0 * ops.cast(level, "float32")

    def input_scale(self, level: object) -> keras.KerasTensor:
        return ops.ones_like(ops.cast(level, "float32"))  # alpha^2 + sigma^2 is 1

    def _exponent(self, level: object) -> object:
        """Returns B(t), for arrays and tensors alike."""
        return level * (0.5 * self.beta_d * level + self.beta_min)

    def get_config(self) -> dict:
        return {"beta_d": self.beta_d, "beta_min": self.beta_min, "epsilon_t": self.epsilon_t}


@keras.saving.register_keras_serializable("keras_cdiff")
class VE(Schedule):
    """The variance-exploding process: alpha = 1, sigma = sqrt(t); the level t is the noise's
    variance.

    Args:
        sigma_min: lowest sigma that a sampler visits, > 0.
        sigma_max: highest sigma, where a sampler starts, > sigma_min.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021; with the time of Karras et al., "Elucidating the Design Space of
        Diffusion-Based Generative Models", 2022, table 1.
    """

    coordinate = "variance"

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        check_sigmas(sigma_min, sigma_max)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.sigma_min**2, self.sigma_max**2

    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = np.maximum(np.asarray(level, dtype=np.float64), 0.0)
        return np.ones_like(level), np.sqrt(level)

    def level_at(self, ratio: np.ndarray) -> np.ndarray:
        return np.square(np.maximum(np.asarray(ratio, dtype=np.float64), 0.0))

    def slopes(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = np.asarray(level, dtype=np.float64)
        return np.zeros_like(level), 0.5 / np.sqrt(level)

    def alpha(self, level: object) -> keras.KerasTensor:
        return ops.ones_like(ops.cast(level, "float32"))

    def sigma(self, level: object) -> keras.KerasTensor:
        return ops.sqrt(ops.maximum(ops.cast(level, "float32"), 0.0))

    def log_snr(self, level: object) -> keras.KerasTensor:
        return -ops.log(ops.maximum(ops.cast(level, "float32"), 0.0))

    def network_level(self, level: object) -> keras.KerasTensor:
        return ops.log(0.5 * self.sigma(level))

    def get_config(self) -> dict:
        return {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


@keras.saving.register_keras_serializable("keras_cdiff")
class RectifiedFlow(Schedule):
    """The straight path from image to noise: alpha = 1 - t, sigma = t, with the velocity v = eps -
    x_0.

    Levels outside [0, 1] count as the nearer end. The network takes 1000 t, so that its sinusoids
    tell times apart as they do timesteps; the official SiT takes t, and counts it from the noise.

    Source: Liu et al., "Flow Straight and Fast", 2023; Ma et al., "SiT: Exploring Flow and
        Diffusion-based Generative Models with Scalable Interpolant Transformers", 2024, table 1
        (linear).
    """

    coordinate = "time"

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, 1.0

    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = np.clip(np.asarray(level, dtype=np.float64), 0.0, 1.0)
        return 1.0 - level, level

    def level_at(self, ratio: np.ndarray) -> np.ndarray:
        ratio = np.clip(np.asarray(ratio, dtype=np.float64), 0.0, np.finfo(np.float64).max)
        return ratio / (1.0 + ratio)

    def slopes(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one = np.ones_like(np.asarray(level, dtype=np.float64))
        return -one, one

    def alpha(self, level: object) -> keras.KerasTensor:
        return 1.0 - _clip_time(level)

    def sigma(self, level: object) -> keras.KerasTensor:
        return _clip_time(level)

    def log_snr(self, level: object) -> keras.KerasTensor:
        level = _clip_time(level)
        return 2.0 * (ops.log1p(-level) - ops.log(level))

    def network_level(self, level: object) -> keras.KerasTensor:
        return 1000.0 * ops.cast(level, "float32")

    def input_scale(self, level: object) -> keras.KerasTensor:
        return ops.ones_like(ops.cast(level, "float32"))

    def velocity(self, level: object) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns (-1, 1): v = eps - x_0, the derivative of x_t with respect to t."""
        one = ops.ones_like(ops.cast(level, "float32"))
        return -one, one


def check_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Raises a ValueError unless the noise levels are positive, finite and ascending."""
    if not 0.0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(
            "Noise levels must satisfy 0 < sigma_min < sigma_max < infinity. "
            f"Received: sigma_min={sigma_min}, sigma_max={sigma_max}"
        )


def _clip_time(level: object) -> keras.KerasTensor:
    return ops.clip(ops.cast(level, "float32"), 0.0, 1.0)

"""Schedules of timesteps: the level is one of 0..T-1."""

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.checks import check_integer
from keras_cdiff.schedules.schedule import Schedule


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

    coordinate = "timestep"

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

    def level_at(self, ratio: np.ndarray) -> np.ndarray:
        """Returns the fractional timesteps at which sigma / alpha is `ratio`, clipped to 0..T-1.

        Between timesteps alpha and sigma are linear, so sigma = ratio alpha is solved exactly.
        """
        ratios = self._sigma / self._alpha
        ratio = np.clip(np.asarray(ratio, dtype=np.float64), ratios[0], ratios[-1])
        last = self.num_timesteps - 1
        below = np.clip(np.searchsorted(ratios, ratio, side="right") - 1, 0, max(last - 1, 0))
        above = np.minimum(below + 1, last)
        missing = ratio * self._alpha[below] - self._sigma[below]
        rise = (
            self._sigma[above]
            - self._sigma[below]
            - ratio * (self._alpha[above] - self._alpha[below])
        )
        # With a single timestep nothing rises.
        fraction = missing / np.where(rise > 0.0, rise, 1.0)
        return below + np.clip(fraction, 0.0, 1.0)

    def slopes(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise ValueError(
            f"{type(self).__name__}'s timesteps are integers, between which nothing changes "
            "smoothly: use a continuous schedule such as VP or RectifiedFlow. "
            f"Received: schedule={type(self).__name__}, level={level}"
        )

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
        num_timesteps = check_integer("num_timesteps", num_timesteps)
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
        num_timesteps = check_integer("num_timesteps", num_timesteps)
        time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
        signal = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        super().__init__(num_timesteps, np.minimum(1.0 - signal[1:] / signal[:-1], 0.999))

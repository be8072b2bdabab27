"""The base of all schedules."""

import abc

import keras
import numpy as np
from keras import ops


class Schedule(abc.ABC):
    """Base of all schedules: alpha, sigma and the log signal-to-noise ratio as functions of the
    noise level.

    Attributes:
        coordinate: what a level is: "timestep", "sigma", "variance" or "time". An objective that
            draws the schedule's levels names the same.
    """

    coordinate = "level"

    @property
    @abc.abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest noise level (for timesteps half-open: [0, T))."""

    @property
    def domain(self) -> tuple[float, float]:
        """The lowest and the highest level that may be trained; wider than `bounds` where those are
        a sampler's alone.
        """
        return self.bounds

    @abc.abstractmethod
    def alpha_sigma(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns alpha and sigma on the host, in float64, in the shape of `level`."""

    @abc.abstractmethod
    def level_at(self, ratio: np.ndarray) -> np.ndarray:
        """Returns the levels at which sigma / alpha is `ratio`, on the host, in float64.

        Args:
            ratio: array of any shape, >= 0; beyond what the schedule has it is clipped.
        """

    @abc.abstractmethod
    def slopes(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the derivatives of alpha and sigma with respect to the level, on the host, in
        float64.

        Raises:
            ValueError: if the levels are timesteps.
        """

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
        """Returns what a network without preconditioning of its own takes for `level`."""
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

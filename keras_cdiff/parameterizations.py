"""Parameterizations: what the network predicts, and how that becomes an estimate of the clean
image.

Each is an affine map with four coefficients that depend on the noise level alone,

    clean(x_t) = c_skip x_t + c_out network(c_in x_t, c_noise),

so that samplers, weightings and the curriculum never ask which one a model uses. The network's
training target is the output for which that estimate is the true image; it is written as a
combination of image and noise, since solving the equation above for it would cancel digits at low
noise.
"""

import abc

import keras
from keras import ops

from keras_cdiff.schedules import EDM, Schedule

Tensor = keras.KerasTensor


class Parameterization(abc.ABC):
    """Base of all parameterizations.

    Args:
        learned_variance: whether the network has a second set of output channels that interpolate
            the variance of the reverse step (Nichol and Dhariwal, "Improved DDPM", 2021, equation
            15). Needs a discrete schedule.
    """

    def __init__(self, learned_variance: bool = False):
        self.learned_variance = bool(learned_variance)

    @abc.abstractmethod
    def coefficients(
        self, level: object, schedule: Schedule
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns c_skip, c_out, c_in and c_noise at `level`, float32, in the shape of `level`."""

    @abc.abstractmethod
    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Returns (a, b) of the training target a x_0 + b eps at `level`."""

    def get_config(self) -> dict:
        return {"learned_variance": self.learned_variance}

    @classmethod
    def from_config(cls, config: dict) -> "Parameterization":
        return cls(**config)


@keras.saving.register_keras_serializable("keras_cdiff")
class Epsilon(Parameterization):
    """The network predicts the noise: clean = (x_t - sigma output) / alpha.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equation 15.
    """

    def coefficients(
        self, level: object, schedule: Schedule
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, sigma = schedule.alpha(level), schedule.sigma(level)
        return (
            1.0 / alpha,
            -sigma / alpha,
            schedule.input_scale(level),
            schedule.network_level(level),
        )

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        one = ops.ones_like(schedule.alpha(level))
        return 0.0 * one, one


@keras.saving.register_keras_serializable("keras_cdiff")
class Sample(Parameterization):
    """The network predicts the clean image itself: clean = output."""

    def coefficients(
        self, level: object, schedule: Schedule
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = ops.ones_like(schedule.alpha(level))
        return 0.0 * one, one, schedule.input_scale(level), schedule.network_level(level)

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        one = ops.ones_like(schedule.alpha(level))
        return one, 0.0 * one


@keras.saving.register_keras_serializable("keras_cdiff")
class Velocity(Parameterization):
    """The network predicts the schedule's velocity v = a x_0 + b eps: clean = (b x_t - sigma v) /
    (b alpha - a sigma).

    Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
        appendix D.
    """

    def coefficients(
        self, level: object, schedule: Schedule
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, sigma = schedule.alpha(level), schedule.sigma(level)
        a, b = schedule.velocity(level)
        determinant = b * alpha - a * sigma
        c_skip, c_out = b / determinant, -sigma / determinant
        return c_skip, c_out, schedule.input_scale(level), schedule.network_level(level)

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return schedule.velocity(level)


@keras.saving.register_keras_serializable("keras_cdiff")
class EDMPreconditioning(Parameterization):
    """EDM's preconditioning: input and target have unit variance and errors are amplified as little
    as possible.

    With s = sigma / alpha and d = sigma_data, for x = x_t / alpha:
    c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2), c_noise =
    ln(s) / 4.

    Args:
        sigma_data: standard deviation d of the data, > 0; 0.5 for images in [-1, 1].

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, table 1.
    """

    def __init__(self, sigma_data: float = 0.5):
        super().__init__()
        if not 0.0 < sigma_data < float("inf"):
            raise ValueError(
                "`sigma_data` must be positive and finite: the images' standard deviation. "
                f"Received: sigma_data={sigma_data}"
            )
        self.sigma_data = float(sigma_data)

    def coefficients(
        self, level: object, schedule: Schedule | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns c_skip, c_out, c_in and c_noise at `level`; without a schedule, `level` is sigma
        as in EDM.
        """
        schedule = schedule or EDM()
        alpha = schedule.alpha(level)
        sigma = schedule.sigma(level) / alpha
        inverse_norm = ops.rsqrt(ops.square(sigma) + self.sigma_data**2)
        c_skip = ops.square(self.sigma_data * inverse_norm)
        c_out = sigma * self.sigma_data * inverse_norm
        return c_skip / alpha, c_out, inverse_norm / alpha, ops.log(sigma) / 4.0

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        sigma = schedule.sigma(level) / schedule.alpha(level)
        inverse_norm = ops.rsqrt(ops.square(sigma) + self.sigma_data**2)
        return sigma * inverse_norm / self.sigma_data, -self.sigma_data * inverse_norm

    def get_config(self) -> dict:
        return {"sigma_data": self.sigma_data}

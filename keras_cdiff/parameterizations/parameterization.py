"""The base of all parameterizations, and those that predict noise, image or velocity."""

import abc
from typing import NamedTuple

import keras
from keras import ops

from keras_cdiff.schedules import Schedule

Tensor = keras.KerasTensor


class Coefficients(NamedTuple):
    """clean = skip x_t + out network(in_ x_t, noise), each a float32 tensor in the shape of the
    level.
    """

    skip: Tensor
    out: Tensor
    in_: Tensor
    noise: Tensor


class Parameterization(abc.ABC):
    """Base of all parameterizations.

    Args:
        learned_variance: whether the network has a second set of output channels that interpolate
            the variance of the reverse step (Nichol and Dhariwal, "Improved DDPM", 2021, equation
            15). Needs a discrete schedule.
    """

    def __init__(self, learned_variance: bool = False):
        self.learned_variance = bool(learned_variance)

    @property
    def output_multiple(self) -> int:
        """How many times the image's channels the network puts out; the first of them predict."""
        return 2 if self.learned_variance else 1

    @abc.abstractmethod
    def coefficients(self, level: object, schedule: Schedule) -> Coefficients:
        """Returns c_skip, c_out, c_in and c_noise at `level`."""

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

    def coefficients(self, level: object, schedule: Schedule) -> Coefficients:
        alpha, sigma = schedule.alpha(level), schedule.sigma(level)
        return Coefficients(1.0 / alpha, -sigma / alpha, *_network_input(level, schedule))

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        one = ops.ones_like(schedule.alpha(level))
        return 0.0 * one, one


@keras.saving.register_keras_serializable("keras_cdiff")
class Sample(Parameterization):
    """The network predicts the clean image itself: clean = output."""

    def coefficients(self, level: object, schedule: Schedule) -> Coefficients:
        one = ops.ones_like(schedule.alpha(level))
        return Coefficients(0.0 * one, one, *_network_input(level, schedule))

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

    def coefficients(self, level: object, schedule: Schedule) -> Coefficients:
        alpha, sigma = schedule.alpha(level), schedule.sigma(level)
        a, b = schedule.velocity(level)
        determinant = b * alpha - a * sigma
        skip, out = b / determinant, -sigma / determinant
        return Coefficients(skip, out, *_network_input(level, schedule))

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return schedule.velocity(level)


def _network_input(level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """c_in and c_noise of a network without preconditioning."""
    return schedule.input_scale(level), schedule.network_level(level)

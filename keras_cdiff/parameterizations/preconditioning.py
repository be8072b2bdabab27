"""Preconditionings: parameterizations of the networks of EDM and of the models that it unites.

With s = sigma / alpha they are those of x = x_t / alpha, whose noise has the standard deviation s:
on any schedule, c_skip and c_in are those of x divided by alpha.
"""

import abc
import math

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.checks import check_integer
from keras_cdiff.parameterizations.parameterization import Coefficients, Parameterization
from keras_cdiff.schedules import EDM, VP, Schedule

Tensor = keras.KerasTensor


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

    def coefficients(self, level: object, schedule: Schedule | None = None) -> Coefficients:
        """Returns c_skip, c_out, c_in and c_noise at `level`; without a schedule, `level` is sigma
        as in EDM.
        """
        schedule = schedule or EDM()
        alpha = schedule.alpha(level)
        sigma = schedule.sigma(level) / alpha
        inverse_norm = ops.rsqrt(ops.square(sigma) + self.sigma_data**2)
        c_skip = ops.square(self.sigma_data * inverse_norm)
        c_out = sigma * self.sigma_data * inverse_norm
        return Coefficients(c_skip / alpha, c_out, inverse_norm / alpha, ops.log(sigma) / 4.0)

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        sigma = schedule.sigma(level) / schedule.alpha(level)
        inverse_norm = ops.rsqrt(ops.square(sigma) + self.sigma_data**2)
        return sigma * inverse_norm / self.sigma_data, -self.sigma_data * inverse_norm

    def get_config(self) -> dict:
        return {"sigma_data": self.sigma_data}


class _NoisePreconditioning(Parameterization):
    """Base of the preconditionings of networks that predict the noise, or minus the noise.

    With s = sigma / alpha, for x = x_t / alpha: clean = x - s output, or x + s output.
    """

    noise_sign = 1.0

    def coefficients(self, level: object, schedule: Schedule | None = None) -> Coefficients:
        """Returns c_skip, c_out, c_in and c_noise at `level`; without a schedule, `level` is sigma
        as in EDM.
        """
        schedule = schedule or EDM()
        alpha, sigma = schedule.alpha(level), schedule.sigma(level)
        ratio = sigma / alpha
        c_in, c_noise = self.network_input(alpha, sigma, ratio)
        return Coefficients(1.0 / alpha, -self.noise_sign * ratio, c_in, c_noise)

    @abc.abstractmethod
    def network_input(self, alpha: Tensor, sigma: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Returns c_in and c_noise; `ratio` is sigma / alpha."""

    def target_coefficients(self, level: object, schedule: Schedule) -> tuple[Tensor, Tensor]:
        one = ops.ones_like(schedule.alpha(level))
        return 0.0 * one, self.noise_sign * one

    def get_config(self) -> dict:
        return {}


@keras.saving.register_keras_serializable("keras_cdiff")
class VPPreconditioning(_NoisePreconditioning):
    """The VP process' network, which predicts the noise and takes a time.

    With s = sigma / alpha, for x = x_t / alpha: c_skip = 1, c_out = -s, c_in = 1 / sqrt(s^2 + 1),
    c_noise = (M - 1) t(s), t(s) = (sqrt(beta_min^2 + 2 beta_d ln(1 + s^2)) - beta_min) / beta_d.

    Args:
        beta_d: growth of the noise's rate from t = 0 to t = 1, > 0.
        beta_min: the noise's rate at t = 0, > 0.
        num_timesteps: M >= 2, the steps by which the network counts time.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021; as in Karras et al., "Elucidating the Design Space of Diffusion-Based
        Generative Models", 2022, table 1.
    """

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, num_timesteps: int = 1000):
        super().__init__()
        process = VP(beta_d, beta_min)
        self.beta_d, self.beta_min = process.beta_d, process.beta_min
        self.num_timesteps = check_integer("num_timesteps", num_timesteps, 2)

    def network_input(self, alpha: Tensor, sigma: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        exponent = ops.log1p(ops.square(ratio))
        # The root for t in the form in which nothing cancels at little noise.
        root = ops.sqrt(self.beta_min**2 + 2.0 * self.beta_d * exponent)
        time = 2.0 * exponent / (root + self.beta_min)
        return ops.rsqrt(ops.square(alpha) + ops.square(sigma)), (self.num_timesteps - 1.0) * time

    def get_config(self) -> dict:
        return {
            "beta_d": self.beta_d,
            "beta_min": self.beta_min,
            "num_timesteps": self.num_timesteps,
        }


@keras.saving.register_keras_serializable("keras_cdiff")
class VEPreconditioning(_NoisePreconditioning):
    """The VE process' network, which sees the unscaled noisy image and predicts minus the noise.

    With s = sigma / alpha, for x = x_t / alpha: c_skip = 1, c_out = s, c_in = 1, c_noise = ln(s /
    2).

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021; as in Karras et al., "Elucidating the Design Space of Diffusion-Based
        Generative Models", 2022, table 1.
    """

    noise_sign = -1.0

    def __init__(self):
        super().__init__()

    def network_input(self, alpha: Tensor, sigma: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 / alpha, ops.log(0.5 * ratio)


@keras.saving.register_keras_serializable("keras_cdiff")
class IDDPMPreconditioning(_NoisePreconditioning):
    """Improved DDPM's network: it predicts the noise, takes a timestep, and has a second set of
    output channels (for its variance), which is left unused.

    With s = sigma / alpha, for x = x_t / alpha: c_skip = 1, c_out = -s, c_in = 1 / sqrt(s^2 + 1),
    c_noise = M - 1 - argmin_j |s - u_j|, where u_M = 0,
    u_{j-1} = sqrt((u_j^2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), c_1) - 1) and
    alpha_bar(j) = sin^2(pi / 2 j / (M (c_2 + 1))).

    Args:
        c_1: least factor by which a step may shrink alpha_bar, in (0, 1).
        c_2: offset of the cosine, >= 0.
        num_timesteps: M >= 2.

    Attributes:
        sigmas: float64 array (M,), descending: u_0 .. u_{M-1}, the s that the network was trained
            at.

    Source: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021; as in
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
        table 1 and appendix C.3.
    """

    def __init__(self, c_1: float = 0.001, c_2: float = 0.008, num_timesteps: int = 1000):
        super().__init__()
        if not (0.0 < c_1 < 1.0 and 0.0 <= c_2 < math.inf):
            raise ValueError(
                "The cosine schedule needs `c_1` between 0 and 1, and `c_2` finite and at least 0. "
                f"Received: c_1={c_1}, c_2={c_2}"
            )
        self.c_1 = float(c_1)
        self.c_2 = float(c_2)
        self.num_timesteps = check_integer("num_timesteps", num_timesteps, 2)
        angle = np.arange(num_timesteps + 1) / (num_timesteps * (self.c_2 + 1.0))
        signal = np.square(np.sin(0.5 * np.pi * angle))
        # 1 + u^2 is 1 / alpha_bar, and grows from 1 at u_M by one factor a step.
        growth = 1.0 / np.maximum(signal[:-1] / signal[1:], self.c_1)
        squares = np.cumprod(growth[::-1])[::-1] - 1.0
        self.sigmas = np.sqrt(squares)
        self._midpoints = np.sort(0.5 * (self.sigmas + np.append(self.sigmas[1:], 0.0)))

    @property
    def output_multiple(self) -> int:
        return 2

    def network_input(self, alpha: Tensor, sigma: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        # The nearest entry of u follows from the number of midpoints between entries below s.
        midpoints = ops.convert_to_tensor(self._midpoints, dtype="float32")
        below = ops.expand_dims(ratio, -1) >= midpoints
        c_noise = ops.sum(ops.cast(below, "float32"), axis=-1) - 1.0
        return ops.rsqrt(ops.square(alpha) + ops.square(sigma)), c_noise

    def get_config(self) -> dict:
        return {"c_1": self.c_1, "c_2": self.c_2, "num_timesteps": self.num_timesteps}

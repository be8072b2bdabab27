"""Heun: the second-order sampler of EDM."""

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_cdiff.samplers.euler import Euler, slope
from keras_cdiff.samplers.sampler import Denoise
from keras_cdiff.schedules import Schedule

_NO_SIGNAL = 1000.0  # sigma / alpha


@keras.saving.register_keras_serializable("keras_cdiff")
class Heun(Euler):
    """Heun's method for the probability-flow ODE, deterministic or with fresh noise.

    A step calls the network twice: the first call gives Euler's step, the second corrects it by the
    mean of the two slopes. In the "sigma" coordinate, d(x / alpha) / d(sigma / alpha) = eps, in
    terms of the clean estimates D at the start and D' at Euler's end,

        x_Euler = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D
        x_s     = x_Euler + alpha_s / 2 (sigma_t alpha_s / (alpha_t sigma_s) - 1) (D' - D)

    The last step, to the clean image, is Euler's alone, as is in that coordinate one that starts
    with next to no signal (sigma_t > 1000 alpha_t, such as the last timestep of `Cosine`): the
    slope there holds over far less than a step, and the correction would swamp the image. In the
    "level" coordinate, with dx / dlevel = p x + q D,

        x_s = x_t + (s - t) / 2 (p_t x_t + q_t D + p_s x_Euler + q_s D')

    which for `RectifiedFlow` is Heun's method for the velocity, from pure noise on.

    Args:
        num_steps: number of steps n, that is 2 n - 1 network calls; or counts by section; see
            `Sampler`.
        rho: see `Sampler`.
        spacing: see `Sampler`.
        clip: whether the estimates of the clean image are clamped to [-1, 1]; EDM does not.
        coordinate: "sigma", or "level" for continuous schedules; see `Euler`.
        s_churn: amount of fresh noise, >= 0; 0 is deterministic. This and the next three are those
            of `Euler`; useful values depend on the data and the network.
        s_min: lowest sigma / alpha at which noise is added, >= 0.
        s_max: highest sigma / alpha at which noise is added, >= s_min.
        s_noise: standard deviation of the noise added, > 0.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, algorithms 1 and 2; the "level" coordinate as in Ma et al., "SiT", 2024.
    """

    def __init__(
        self,
        num_steps: int | Sequence[int] = 18,
        rho: float = 7.0,
        spacing: str | Sequence[float] = "linspace",
        clip: bool = False,
        coordinate: str = "sigma",
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
    ):
        super().__init__(num_steps, coordinate, spacing, rho, clip, s_churn, s_min, s_max, s_noise)

    def coefficients(
        self, alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
    ) -> dict[str, np.ndarray]:
        corrected = (next_sigma > 0.0) & (sigma <= _NO_SIGNAL * alpha)
        ratio = np.ones_like(alpha)
        np.divide(sigma * next_alpha, alpha * next_sigma, out=ratio, where=corrected)
        return {
            **super().coefficients(alpha, sigma, next_alpha, next_sigma),
            "correction": 0.5 * next_alpha * (ratio - 1.0),
        }

    def level_coefficients(
        self, schedule: Schedule, level: np.ndarray, next_level: np.ndarray
    ) -> dict[str, np.ndarray]:
        euler = super().level_coefficients(schedule, level, next_level)
        half = 0.5 * (next_level - level)
        half[-1] = 0.0
        x_slope, clean_slope = slope(schedule, level)
        # The last step is not corrected, and at its end there is no slope: any level stands in.
        next_x_slope, next_clean_slope = slope(schedule, np.append(next_level[:-1], level[-1]))
        # In terms of x_Euler and of D' - D, so that what cancels does so before rounding.
        return {
            **euler,
            "correction": half * next_clean_slope,
            "x_correction": half * (next_x_slope * euler["x_weight"] - x_slope),
            "clean_correction": half
            * (next_x_slope * euler["clean_weight"] + next_clean_slope - clean_slope),
        }

    def step(
        self,
        denoise: Denoise,
        x: object,
        clean: object,
        row: dict[str, object],
        noise: object = None,
        last: bool = False,
    ) -> tuple[object, object]:
        x = self.with_noise(x, row, noise)
        clean = self.clipped(denoise(x, row["level"])["clean"])
        end = row["x_weight"] * x + row["clean_weight"] * clean
        if last:
            return end, clean
        corrected = self.clipped(denoise(end, row["next_level"])["clean"])
        end = end + row["correction"] * (corrected - clean)
        if self.coordinate == "level":
            end = end + row["x_correction"] * x + row["clean_correction"] * clean
        return end, corrected

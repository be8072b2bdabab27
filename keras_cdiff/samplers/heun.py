"""Heun: the second-order sampler of EDM."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_cdiff.samplers.sampler import Denoise, Sampler

_NO_SIGNAL = 1000.0  # sigma / alpha


@keras.saving.register_keras_serializable("keras_cdiff")
class Heun(Sampler):
    """Heun's method for the probability-flow ODE d(x / alpha) / d(sigma / alpha) = eps.

    A step calls the network twice: the first call gives Euler's step, the second corrects it by the
    mean of the two slopes. In terms of the clean estimates D at the start and D' at Euler's end,

        x_Euler = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D
        x_s     = x_Euler + alpha_s / 2 (sigma_t alpha_s / (alpha_t sigma_s) - 1) (D' - D)

    The last step, to the clean image, is Euler's alone, as is one that starts with next to no
    signal (sigma_t > 1000 alpha_t, such as the last timestep of `Cosine`): the slope there holds
    over far less than a step, and the correction would swamp the image.

    Args:
        num_steps: number of steps n, that is 2 n - 1 network calls; or counts by section; see
            `Sampler`.
        rho: exponent of the grid of levels of continuous schedules, > 0.
        spacing: see `Sampler`.
        clip: whether the estimates of the clean image are clamped to [-1, 1]; EDM does not.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, algorithm 1.
    """

    def __init__(
        self,
        num_steps: int | Sequence[int] = 18,
        rho: float = 7.0,
        spacing: str | Sequence[float] = "linspace",
        clip: bool = False,
    ):
        super().__init__(num_steps, spacing, rho, clip)

    def coefficients(
        self, alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
    ) -> dict[str, np.ndarray]:
        corrected = (next_sigma > 0.0) & (sigma <= _NO_SIGNAL * alpha)
        ratio = np.ones_like(alpha)
        np.divide(sigma * next_alpha, alpha * next_sigma, out=ratio, where=corrected)
        return {
            "x_weight": next_sigma / sigma,
            "clean_weight": next_alpha - alpha * next_sigma / sigma,
            "correction": 0.5 * next_alpha * (ratio - 1.0),
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
        clean = self.clipped(denoise(x, row["level"])["clean"])
        x = row["x_weight"] * x + row["clean_weight"] * clean
        if last:
            return x, clean
        corrected = self.clipped(denoise(x, row["next_level"])["clean"])
        return x + row["correction"] * (corrected - clean), corrected

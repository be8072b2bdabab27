"""DDIM: few steps with little or no fresh noise."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_cdiff.samplers.sampler import Denoise, Sampler, forward_variance


@keras.saving.register_keras_serializable("keras_cdiff")
class DDIM(Sampler):
    """Denoising diffusion implicit model: keep the noise found in x_t, scaled to the next level.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) eps + c z,   eps = (x_t - alpha_t x_0) / sigma_t
        c = eta (sigma_s / sigma_t) sigma_{t|s}

    eta = 0 is deterministic: Euler's method for the probability-flow ODE in x / alpha and
    sigma / alpha. eta = 1 is DDPM with the small variance.

    Args:
        num_steps: number of steps, or counts by section; see `Sampler`.
        eta: share of fresh noise, 0..1.
        spacing: see `Sampler`.
        rho: see `Sampler`.
        clip: whether the estimates of the clean image are clamped to [-1, 1]: customary for images
            in pixels; choose False for latents.
        noise_from_clipped: whether eps follows from the clamped estimate, as in ADM and DiT, or is
            the network's own, as in diffusers. Without `clip` the two are the same.

    Source: Song et al., "Denoising Diffusion Implicit Models", 2021, equations 12, 13 and 16.
    """

    def __init__(
        self,
        num_steps: int | Sequence[int] = 50,
        eta: float = 0.0,
        spacing: str | Sequence[float] = "linspace",
        rho: float = 7.0,
        clip: bool = True,
        noise_from_clipped: bool = True,
    ):
        super().__init__(num_steps, spacing, rho, clip)
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"`eta` must be between 0 and 1. Received: eta={eta}")
        self.eta = float(eta)
        self.noise_from_clipped = bool(noise_from_clipped)

    @property
    def needs_noise(self) -> bool:
        return self.eta > 0.0

    def coefficients(
        self, alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
    ) -> dict[str, np.ndarray]:
        fresh = self.eta**2 * forward_variance(alpha, sigma, next_alpha, next_sigma)
        kept = next_sigma * np.sqrt(1.0 - fresh) / sigma
        return {
            "x_weight": kept,
            "signal_weight": alpha * kept,
            "clean_weight": next_alpha,
            "noise_weight": next_sigma * np.sqrt(fresh),
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
        estimate = denoise(x, row["level"])["clean"]
        clean = self.clipped(estimate)
        signal = clean if self.noise_from_clipped else estimate
        x = row["clean_weight"] * clean + row["x_weight"] * x - row["signal_weight"] * signal
        if self.needs_noise:
            x = x + row["noise_weight"] * noise
        return x, clean

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "eta": self.eta,
            "noise_from_clipped": self.noise_from_clipped,
        }

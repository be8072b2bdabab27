"""DDPM: ancestral sampling."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.model.variational import interpolate_log_variance
from keras_cdiff.samplers.sampler import Denoise, Sampler, forward_variance

VARIANCES = ("learned", "small", "large")


@keras.saving.register_keras_serializable("keras_cdiff")
class DDPM(Sampler):
    """Ancestral sampling: each step draws from p(x_s | x_t), the posterior of the forward process.

        mean = (alpha_t / alpha_s)(sigma_s / sigma_t)^2 x_t + alpha_s (sigma_{t|s} / sigma_t)^2 x_0
        small variance = (sigma_s sigma_{t|s} / sigma_t)^2,  large variance = sigma_{t|s}^2
        log of the learned variance = (v + 1) / 2 log large + (1 - v) / 2 log small

    with sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, for timesteps the beta of the
    respaced process. The last step adds no noise.

    Args:
        num_steps: number of steps, or counts by section; see `Sampler`.
        variance: "learned" (the network's own, between small and large), "small" (the posterior
            variance) or "large" (the forward variance). None: learned if the model predicts it,
            else small.
        spacing: see `Sampler`.
        rho: see `Sampler`.
        clip: whether the estimates of the clean image are clamped to [-1, 1]: customary for images
            in pixels; choose False for latents, as DiT does.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equations 6 and 7; learned
        variances from Nichol and Dhariwal, "Improved DDPM", 2021, equation 15; for any alpha and
        sigma Kingma et al., "Variational Diffusion Models", 2021, appendix A.
    """

    def __init__(
        self,
        num_steps: int | Sequence[int] = 250,
        variance: str | None = None,
        spacing: str | Sequence[float] = "linspace",
        rho: float = 7.0,
        clip: bool = True,
    ):
        super().__init__(num_steps, spacing, rho, clip)
        if variance is not None and variance not in VARIANCES:
            raise ValueError(
                f"`variance` must be None or one of {VARIANCES}. Received: variance={variance!r}"
            )
        self.variance = variance

    @property
    def needs_noise(self) -> bool:
        return True

    def check(self, learned_variance: bool) -> None:
        if self.variance == "learned" and not learned_variance:
            raise ValueError(
                "The model predicts no variance: build it with learned variances, or sample with "
                'variance="small" or "large". Received: variance="learned"'
            )

    def coefficients(
        self, alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
    ) -> dict[str, np.ndarray]:
        fraction = forward_variance(alpha, sigma, next_alpha, next_sigma)
        large = sigma**2 * fraction
        small = next_sigma**2 * fraction
        # The last step's is 0, without a logarithm: the one before it stands in, as in ADM and DiT.
        small[-1] = small[-2] if len(small) > 1 else large[-1]
        return {
            "x_weight": alpha / next_alpha * (next_sigma / sigma) ** 2,
            "clean_weight": next_alpha * fraction,
            "log_small": np.log(small),
            "log_large": np.log(large),
            "noise_weight": (next_sigma > 0.0).astype("float64"),
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
        estimate = denoise(x, row["level"])
        clean = self.clipped(estimate["clean"])
        mean = row["x_weight"] * x + row["clean_weight"] * clean
        std = ops.exp(0.5 * self._log_variance(estimate["variance"], row))
        return mean + row["noise_weight"] * std * noise, clean

    def _log_variance(self, learned: object, row: dict[str, object]) -> object:
        self.check(learned is not None)
        kind = self.variance or ("small" if learned is None else "learned")
        if kind != "learned":
            return ops.cast(row[f"log_{kind}"], "float32")
        return interpolate_log_variance(learned, row["log_small"], row["log_large"])

    def get_config(self) -> dict:
        return {**super().get_config(), "variance": self.variance}

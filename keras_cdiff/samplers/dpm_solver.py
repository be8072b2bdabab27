"""DPM-Solver++: second order at one network call a step."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_cdiff.samplers.sampler import Denoise, Sampler, noise_levels
from keras_cdiff.schedules import DiscreteSchedule, Schedule


@keras.saving.register_keras_serializable("keras_cdiff")
class DPMSolver(Sampler):
    """DPM-Solver++(2M): multistep, second order, in terms of the clean estimates D.

        x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D~
        D~  = D + h / (2 h_before) (D - D_before)
        h   = ln(alpha_s / sigma_s) - ln(alpha_t / sigma_t)

    that is Euler's step (DDIM's) along an estimate extrapolated from this step's and the one
    before. The first step has none before it, and the last, to the clean image, is infinitely long
    in h: both are first order, D~ = D, as is the step after one that starts without any signal.

    Args:
        num_steps: number of steps, or counts by section; see `Sampler`.
        spacing: see `Sampler`; None for "trailing" on timesteps, else "linspace". Linspace's last
            step but one, to timestep 0, is so much longer in h than the one before that the
            extrapolation overshoots.
        rho: see `Sampler`.
        clip: whether the estimates of the clean image are clamped to [-1, 1], before they are
            extrapolated.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models", 2022, algorithm 2.
    """

    def __init__(
        self,
        num_steps: int | Sequence[int] = 20,
        spacing: str | Sequence[float] | None = None,
        rho: float = 7.0,
        clip: bool = False,
    ):
        super().__init__(num_steps, "linspace" if spacing is None else spacing, rho, clip)
        if spacing is None:
            self.spacing = None

    def levels(self, schedule: Schedule) -> np.ndarray:
        spacing = self.spacing
        if spacing is None:
            spacing = "trailing" if isinstance(schedule, DiscreteSchedule) else "linspace"
        return noise_levels(schedule, self.num_steps, spacing, self.rho)

    def coefficients(
        self, alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
    ) -> dict[str, np.ndarray]:
        with np.errstate(divide="ignore"):  # without any signal the logarithm is -infinity
            half_log_snr = np.log(alpha) - np.log(sigma)
        length = np.diff(half_log_snr)  # of all steps but the last
        extrapolation = np.zeros_like(alpha)
        extrapolation[1:-1] = 0.5 * length[1:] / length[:-1]
        return {
            "x_weight": next_sigma / sigma,
            "clean_weight": next_alpha - alpha * next_sigma / sigma,
            "extrapolation": extrapolation,
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
        before = clean
        clean = self.clipped(denoise(x, row["level"])["clean"])
        ahead = clean + row["extrapolation"] * (clean - before)
        return row["x_weight"] * x + row["clean_weight"] * ahead, clean

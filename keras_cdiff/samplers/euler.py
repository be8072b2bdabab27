"""Euler and Heun: first and second order steps along the probability-flow ODE."""

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_cdiff.samplers.sampler import Denoise, Sampler
from keras_cdiff.schedules import DiscreteSchedule, Schedule

COORDINATES = ("sigma", "level")
_MAX_RAISE = math.sqrt(2.0) - 1.0
_NO_SIGNAL = 1000.0  # sigma / alpha


@keras.saving.register_keras_serializable("keras_cdiff")
class Euler(Sampler):
    """Euler's method for the probability-flow ODE, one network call a step.

    The same ODE can be followed in two coordinates, D being the estimate of the clean image and
    eps = (x - alpha D) / sigma the noise it leaves:

        "sigma":  d(x / alpha) / d(sigma / alpha) = eps
        "level":  dx / dlevel = (dalpha / dlevel) D + (dsigma / dlevel) eps

    Euler in "sigma" is DDIM with eta = 0 on any schedule. "level" is the schedule's own time: for
    `RectifiedFlow` the velocity, along which Euler's steps are the same as in "sigma"; for `VP` and
    `VE` the samplers of Song et al. Its last step goes to level 0, where alpha = 1 and sigma = 0;
    for `VP` and `VE`, whose sigma falls ever faster there, it leaves some of the lowest noise.

    With `s_churn` > 0 a step at a ratio sigma / alpha within [s_min, s_max] first adds noise, so
    that the ratio grows by the factor 1 + min(s_churn / n, sqrt(2) - 1), and starts from there, as
    far as the schedule has such levels (`Schedule.level_at`; timesteps become fractional).

    Args:
        num_steps: number of steps n, or counts by section; see `Sampler`.
        coordinate: "sigma", or "level" for continuous schedules.
        spacing: see `Sampler`.
        rho: see `Sampler`.
        clip: whether the estimates of the clean image are clamped to [-1, 1].
        s_churn: amount of fresh noise over all steps, >= 0; 0 is deterministic.
        s_min: lowest sigma / alpha at which noise is added, >= 0.
        s_max: highest sigma / alpha at which noise is added, >= s_min.
        s_noise: standard deviation of the noise added, > 0; slightly more than 1 makes up for
            detail that the network removes with the noise.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, equation 4 and algorithm 2.
    """

    def __init__(
        self,
        num_steps: int | Sequence[int] = 50,
        coordinate: str = "sigma",
        spacing: str | Sequence[float] = "linspace",
        rho: float = 7.0,
        clip: bool = False,
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
    ):
        super().__init__(num_steps, spacing, rho, clip)
        if coordinate not in COORDINATES:
            raise ValueError(
                f"`coordinate` must be one of {COORDINATES}. Received: coordinate={coordinate!r}"
            )
        if not 0.0 <= s_churn < math.inf:
            raise ValueError(
                "`s_churn` must be finite and not negative (0 adds no noise). "
                f"Received: s_churn={s_churn}"
            )
        if not 0.0 <= s_min <= s_max:
            raise ValueError(
                "`s_min` and `s_max` must satisfy 0 <= s_min <= s_max. "
                f"Received: s_min={s_min}, s_max={s_max}"
            )
        if not 0.0 < s_noise < math.inf:
            raise ValueError(f"`s_noise` must be positive and finite. Received: s_noise={s_noise}")
        self.coordinate = coordinate
        self.s_churn = float(s_churn)
        self.s_min = float(s_min)
        self.s_max = float(s_max)
        self.s_noise = float(s_noise)

    @property
    def needs_noise(self) -> bool:
        return self.s_churn > 0.0

    def table(self, schedule: Schedule) -> dict[str, np.ndarray]:
        """Returns the coefficients of all steps; "level" is the one reached by adding noise."""
        levels = self.levels(schedule)
        alpha, sigma = schedule.alpha_sigma(levels)
        starts = self._raised(schedule, levels)
        start_alpha, start_sigma = schedule.alpha_sigma(starts)
        kept = np.ones_like(alpha)
        np.divide(start_alpha, alpha, out=kept, where=starts > levels)
        added = np.maximum(np.square(start_sigma) - np.square(kept * sigma), 0.0)
        if self.coordinate == "level":
            _check_times(schedule)
            columns = self.level_coefficients(schedule, starts, np.append(levels[1:], 0.0))
        else:
            columns = self.coefficients(
                start_alpha, start_sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
            )
        return {
            "level": starts,
            "next_level": np.append(levels[1:], levels[-1]),
            "kept_weight": kept,
            "noise_weight": self.s_noise * np.sqrt(added),
            **columns,
        }

    def coefficients(
        self, alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
    ) -> dict[str, np.ndarray]:
        return {
            "x_weight": next_sigma / sigma,
            "clean_weight": next_alpha - alpha * next_sigma / sigma,
        }

    def level_coefficients(
        self, schedule: Schedule, level: np.ndarray, next_level: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the columns of the table for steps in the "level" coordinate.

        Args:
            schedule: the schedule of the model.
            level: (n,) float64, the level at which each step starts.
            next_level: (n,) the level at which each step ends, 0 for the last.
        """
        change = next_level - level
        x_slope, clean_slope = slope(schedule, level)
        return {"x_weight": 1.0 + change * x_slope, "clean_weight": change * clean_slope}

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
        return row["x_weight"] * x + row["clean_weight"] * clean, clean

    def with_noise(self, x: object, row: dict[str, object], noise: object) -> object:
        """Returns images raised to the level at which the step starts."""
        if not self.needs_noise:
            return x
        return row["kept_weight"] * x + row["noise_weight"] * noise

    def _raised(self, schedule: Schedule, levels: np.ndarray) -> np.ndarray:
        """Returns the levels at which the steps start, raised where noise is added."""
        alpha, sigma = schedule.alpha_sigma(levels)
        ratio = np.full_like(alpha, math.inf)
        np.divide(sigma, alpha, out=ratio, where=alpha > 0.0)
        churned = (self.s_min <= ratio) & (ratio <= self.s_max) & np.isfinite(ratio)
        if not self.needs_noise or not np.any(churned):
            return levels
        factor = 1.0 + min(self.s_churn / len(levels), _MAX_RAISE)
        raised = np.array(levels)
        raised[churned] = schedule.level_at(factor * ratio[churned])
        return np.maximum(raised, levels)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "coordinate": self.coordinate,
            "s_churn": self.s_churn,
            "s_min": self.s_min,
            "s_max": self.s_max,
            "s_noise": self.s_noise,
        }


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


def slope(schedule: Schedule, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (p, q) of the probability-flow ODE dx / dlevel = p x + q D, float64."""
    alpha, sigma = schedule.alpha_sigma(level)
    alpha_slope, sigma_slope = schedule.slopes(level)
    x_slope = sigma_slope / sigma
    return x_slope, alpha_slope - alpha * x_slope


def _check_times(schedule: Schedule) -> None:
    """Raises unless the level is a continuous coordinate with the clean image at 0."""
    discrete = isinstance(schedule, DiscreteSchedule)
    if discrete or schedule.alpha_sigma(np.array(0.0)) != (1.0, 0.0):
        raise ValueError(
            'coordinate="level" needs a continuous schedule that has the clean image at level 0, '
            'such as RectifiedFlow or VP; use coordinate="sigma", which any schedule has. '
            f"Received: schedule={type(schedule).__name__}"
        )

"""The relative entropy along a schedule, with the levels it is measured at."""

import dataclasses

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.distribution import share, sharing
from keras_cdiff.schedules import DiscreteSchedule, Schedule
from keras_cdiff.study.relative_entropy import relative_entropy

# Beyond these ratios of noise to signal nothing is left of either: EDM's own range of sigma.
_LEAST_NOISE, _MOST_NOISE = 0.002, 80.0


@dataclasses.dataclass
class EntropyCurve:
    """The relative entropy of neighbouring marginals at some levels of one schedule.

    Attributes:
        schedule: the schedule.
        levels: (L,) ascending.
        estimate: (L,) in nats for the whole image: between t - 1 and t for timesteps, else the rate
            per squared unit of log SNR; see `relative_entropy`.
        error: (L,) its standard errors.
        num_dimensions: values in an image.
    """

    schedule: Schedule
    levels: np.ndarray
    estimate: np.ndarray
    error: np.ndarray
    num_dimensions: int

    @property
    def name(self) -> str:
        """What the schedule is called."""
        return type(self.schedule).__name__

    @property
    def discrete(self) -> bool:
        """Whether the levels are timesteps."""
        return isinstance(self.schedule, DiscreteSchedule)

    @property
    def log_snr(self) -> np.ndarray:
        """(L,) 2 ln(alpha / sigma)."""
        return log_snr(self.schedule, self.levels)

    @property
    def per_level(self) -> np.ndarray:
        """(L,) the relative entropy between levels an equal small step apart, by the square of that
        step in the native coordinate: for timesteps `estimate`, else the rate times
        (d log SNR / d level)^2.
        """
        if self.discrete:
            return self.estimate
        alpha, sigma = self.schedule.alpha_sigma(self.levels)
        alpha_slope, sigma_slope = self.schedule.slopes(self.levels)
        return self.estimate * np.square(2.0 * (alpha_slope / alpha - sigma_slope / sigma))


def measure_entropy(
    images: np.ndarray,
    schedule: Schedule,
    num_levels: int = 40,
    num_draws: int = 256,
    seed: int = 0,
) -> EntropyCurve:
    """Estimates the relative entropy at `spread_levels` of a schedule, which are shared among the
    processes of `distribution.shared_by`.

    Args:
        images: float (N, ...), in the units of training.
        schedule: the schedule.
        num_levels: L.
        num_draws, seed: as for `relative_entropy`.
    """
    levels = spread_levels(schedule, num_levels)
    count = sharing().count
    parts = [levels[rank::count] for rank in range(min(count, len(levels)))]
    results = share(parts, lambda part: relative_entropy(images, schedule, part, num_draws, seed))
    estimate, error = np.zeros((2, len(levels)))
    for rank, result in enumerate(results):
        estimate[rank::count], error[rank::count] = result
    return EntropyCurve(schedule, levels, estimate, error, int(np.prod(images.shape[1:])))


def spread_levels(schedule: Schedule, num_levels: int = 40) -> np.ndarray:
    """Returns levels from little noise to much, float64 (L,): timesteps in constant proportion, of
    which the smallest coincide; other levels at even distances of log SNR.

    Args:
        schedule: the schedule.
        num_levels: >= 2.

    Raises:
        ValueError: if `num_levels` is out of range.
    """
    num_levels = check_integer("num_levels", num_levels, 2)
    if isinstance(schedule, DiscreteSchedule):
        levels = np.geomspace(1, schedule.num_timesteps - 1, num_levels)
        return np.unique(np.round(levels)).astype(np.float64)
    alpha, sigma = schedule.alpha_sigma(np.array(schedule.bounds))
    with np.errstate(divide="ignore"):
        low, high = np.clip(sigma / alpha, _LEAST_NOISE, _MOST_NOISE)
    return schedule.level_at(np.geomspace(low, high, num_levels))


def log_snr(schedule: Schedule, levels: np.ndarray) -> np.ndarray:
    """Returns the log SNR of levels, on the host, infinite where there is no noise or no signal."""
    levels = np.asarray(levels, dtype=np.float64)
    result = np.empty(levels.shape)
    inside = np.isfinite(levels)
    result[~inside] = -np.inf
    alpha, sigma = schedule.alpha_sigma(levels[inside])
    with np.errstate(divide="ignore"):
        result[inside] = 2.0 * (np.log(alpha) - np.log(sigma))
    return result

"""The relative entropy of Gaussian data, in closed form."""

from collections.abc import Sequence

import numpy as np

from keras_cdiff.schedules import DiscreteSchedule, Schedule
from keras_cdiff.study.marginals import consecutive, log_snr_slopes


def gaussian_relative_entropy(
    variance: float, schedule: Schedule, levels: Sequence[float], num_dimensions: int = 1
) -> np.ndarray:
    """Returns what `relative_entropy` estimates, for data of N(0, s^2 I): float64 (L,), in nats.

    The marginals are N(0, v I) with v = alpha^2 s^2 + sigma^2, so that for timesteps

        D_KL(p_{t-1} || p_t) = d / 2 (r - 1 - ln r),   r = v_{t-1} / v_t

    and for continuous schedules, with derivatives by the log SNR, the rate is d / 4 (v' / v)^2.

    Args:
        variance: s^2 >= 0.
        schedule: the schedule.
        levels: the levels (L,), as for `relative_entropy`.
        num_dimensions: d.
    """
    if isinstance(schedule, DiscreteSchedule):
        before, after = consecutive(schedule, levels)
        ratio = _variance(variance, *before) / _variance(variance, *after)
        return 0.5 * num_dimensions * (ratio - 1.0 - np.log(ratio))
    alpha, sigma, alpha_slope, sigma_slope = log_snr_slopes(schedule, levels)
    slope = 2.0 * (alpha * alpha_slope * variance + sigma * sigma_slope)
    return 0.25 * num_dimensions * np.square(slope / _variance(variance, alpha, sigma))


def _variance(variance: float, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return np.square(alpha) * variance + np.square(sigma)

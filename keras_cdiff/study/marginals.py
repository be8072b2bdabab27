"""Where the study looks: at pairs of marginals, or at how a marginal changes with log SNR."""

from collections.abc import Sequence

import numpy as np

from keras_cdiff.schedules import DiscreteSchedule, Schedule


def consecutive(
    schedule: DiscreteSchedule, levels: Sequence[float]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns (alpha, sigma) of the timesteps before `levels`, and of `levels`, float64 (L,).

    Raises:
        ValueError: unless all are integers in 1..T-1.
    """
    levels = np.asarray(levels, dtype=np.float64)
    last = schedule.num_timesteps - 1
    if levels.ndim != 1 or np.any((levels < 1) | (levels > last) | (levels % 1 != 0)):
        raise ValueError(
            f"Levels must be timesteps in 1..{last}, each compared with the one before it. "
            f"Received: levels={levels.tolist()}"
        )
    return schedule.alpha_sigma(levels - 1), schedule.alpha_sigma(levels)


def log_snr_slopes(
    schedule: Schedule, levels: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns alpha, sigma and their derivatives by the log SNR, float64 (L,).

    Raises:
        ValueError: unless all levels lie on the schedule and hold both signal and noise.
    """
    levels = np.asarray(levels, dtype=np.float64)
    low, high = schedule.domain
    alpha, sigma = schedule.alpha_sigma(levels)
    inside = (levels >= low) & (levels <= high) & np.isfinite(levels)
    if levels.ndim != 1 or not np.all(inside & (alpha > 0.0) & (sigma > 0.0)):
        raise ValueError(
            f"Levels must lie within [{low:g}, {high:g}] and hold both signal and noise. "
            f"Received: levels={levels.tolist()}"
        )
    alpha_slope, sigma_slope = schedule.slopes(levels)
    log_snr_slope = 2.0 * (alpha_slope / alpha - sigma_slope / sigma)
    return alpha, sigma, alpha_slope / log_snr_slope, sigma_slope / log_snr_slope

"""Clusters of equal total difficulty, from difficulty that has been measured."""

from collections.abc import Sequence

import numpy as np

from keras_cdiff.curriculum.clusters import Clusters, check_num_clusters


def difficulty_clusters(
    levels: Sequence[float],
    difficulty: Sequence[float],
    num_clusters: int,
    schedule: object = None,
) -> Clusters:
    """Cuts the noise range into clusters of the same total difficulty, easy ones wide.

        D(e_i) = i / N D(e_N),   D(e) = integral of the difficulty from e_0 to e

    The difficulty is known at some levels, as a density, between which it is interpolated linearly:
    per timestep, or per unit of log SNR on a continuous schedule, as `study.relative_entropy`
    measures it; without a schedule, per unit of the levels themselves. Or, one value less than
    there are levels, it is the total of each interval between two levels, spread evenly over it.

    Integers, and the levels of a discrete schedule, are timesteps: timestep t fills [t, t + 1), and
    each cluster holds whole ones. With a schedule the edges run from one end of its domain to the
    other: timesteps beyond the outermost levels are as difficult as these, and continuous levels
    there, which may be without end, join the outer clusters and count for nothing.

    Args:
        levels: (L,) ascending, in the native coordinate, L >= 2.
        difficulty: (L,) densities or (L - 1,) totals; finite, >= 0 and not all 0.
        num_clusters: N >= 1, and at most the number of timesteps.
        schedule: the `keras_cdiff.schedules.Schedule` of the levels, or None.

    Returns:
        The clusters; `Clusters.save` writes them to a file that `apps/train.py --clusters` takes.

    Raises:
        ValueError: if an argument is out of its range.
    """
    passed, levels = np.asarray(levels), np.asarray(levels, dtype=np.float64)
    difficulty = np.asarray(difficulty, dtype=np.float64)
    _check(levels, difficulty)
    num_timesteps = getattr(schedule, "num_timesteps", None)
    if num_timesteps or (schedule is None and passed.dtype.kind in "iu"):
        return _of_timesteps(levels, difficulty, num_clusters, num_timesteps)
    num_clusters = check_num_clusters(num_clusters, None)
    if schedule is None:
        places, back = levels, lambda place: place
    else:
        low, high = schedule.domain
        if levels[0] < low or levels[-1] > high:
            raise ValueError(
                f"The levels must lie on the schedule, within [{low:g}, {high:g}]. "
                f"Received: levels from {levels[0]:g} to {levels[-1]:g}"
            )
        # From little noise to much, as the levels.
        alpha, sigma = schedule.alpha_sigma(levels)
        if not np.all((alpha > 0.0) & (sigma > 0.0)):
            raise ValueError(
                "The levels must hold signal and noise. "
                f"Received: levels from {levels[0]:g} to {levels[-1]:g}"
            )
        places = 2.0 * (np.log(sigma) - np.log(alpha))
        back = lambda place: schedule.level_at(np.exp(0.5 * place))  # noqa: E731
    totals = difficulty
    if len(difficulty) == len(levels):
        totals = 0.5 * (difficulty[1:] + difficulty[:-1]) * np.diff(places)
    edges = _equal_parts(places, totals, num_clusters)
    edges = np.concatenate([levels[:1], back(edges[1:-1]), levels[-1:]])
    if schedule is not None:
        edges[[0, -1]] = schedule.domain
    return Clusters(edges, "difficulty", schedule.coordinate if schedule is not None else None)


def _of_timesteps(
    levels: np.ndarray, difficulty: np.ndarray, num_clusters: int, num_timesteps: int | None
) -> Clusters:
    low, high = (levels[0], levels[-1]) if num_timesteps is None else (0, num_timesteps - 1)
    outside = levels[0] < low or levels[-1] > high + (len(difficulty) < len(levels))
    if np.any(levels % 1.0) or outside:
        raise ValueError(
            f"The levels must be whole timesteps in {low:.0f}..{high:.0f}. "
            f"Received: levels from {levels[0]:g} to {levels[-1]:g}"
        )
    if len(difficulty) < len(levels):  # of intervals, whose last edge is no timestep
        edges = np.arange(levels[0], levels[-1] + 1.0)
        if num_timesteps is not None:
            edges = np.arange(num_timesteps + 1.0)
        places = np.searchsorted(levels, edges[:-1], side="right") - 1
        totals = (difficulty / np.diff(levels))[np.clip(places, 0, len(difficulty) - 1)]
    else:
        edges = np.arange(low, high + 2.0)
        totals = np.interp(edges[:-1], levels, difficulty)
    num_clusters = check_num_clusters(num_clusters, len(totals))
    return Clusters(
        _whole(_equal_parts(edges, totals, num_clusters), edges), "difficulty", "timestep"
    )


def _equal_parts(places: np.ndarray, totals: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns N + 1 places between which the totals of the intervals, spread evenly, are equal."""
    cumulative = np.append(0.0, np.cumsum(totals)) / np.sum(totals)
    edges = np.interp(np.arange(num_clusters + 1) / num_clusters, cumulative, places)
    edges[[0, -1]] = places[[0, -1]]
    return edges


def _whole(edges: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """Rounds edges to timesteps, and moves them so that each cluster holds at least one."""
    edges, last = np.round(edges), len(edges) - 1
    for i in range(1, last + 1):
        edges[i] = max(edges[i], edges[i - 1] + 1.0)
    edges[-1] = timesteps[-1]
    for i in range(last - 1, 0, -1):
        edges[i] = min(edges[i], edges[i + 1] - 1.0)
    return edges


def _check(levels: np.ndarray, difficulty: np.ndarray) -> None:
    ascending = levels.ndim == 1 and len(levels) >= 2 and np.all(np.diff(levels) > 0.0)
    if not ascending or not np.all(np.isfinite(levels)):
        raise ValueError(
            "`levels` must be at least two finite levels that ascend strictly. "
            f"Received: levels={levels.tolist()}"
        )
    fits = difficulty.ndim == 1 and len(levels) - len(difficulty) in (0, 1)
    if (
        not fits
        or not np.all(np.isfinite(difficulty) & (difficulty >= 0.0))
        or not difficulty.any()
    ):
        raise ValueError(
            f"`difficulty` must be {len(levels)} values, one a level, or {len(levels) - 1}, one an "
            "interval between levels; finite, none negative and not all zero. "
            f"Received: difficulty={difficulty.tolist()}"
        )

"""What the records of a setting say: means, paired differences and speed-ups over seeds.

Every interval is a 95 % percentile bootstrap over seeds: seeds are drawn with replacement, the
same ones for both of what is compared. One seed has no interval. Those of few seeds are too narrow,
see `COVERAGE`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from records import Runs, as_number, curves

# Up to so many resamples n^n are enumerated (n <= 5), beyond they are drawn.
MOST_ENUMERATED, DRAWN = 3125, 10_000
QUANTILES = (0.025, 0.975)
# How often the interval of n normal seeds holds their true mean, by simulating this code.
COVERAGE = {2: 0.50, 3: 0.75, 4: 0.80, 5: 0.85}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number over seeds, with its interval.

    Attributes:
        value: of the seeds themselves.
        interval: (low, high), 95 %; None for one seed.
        seeds: how many.
        missed: for a speed-up the share of resamples in which the target is not reached; None for
            one seed.
    """

    value: float
    interval: tuple[float, float] | None
    seeds: int
    missed: float | None = None


def steps_to_reach(
    steps: Sequence[float], distances: np.ndarray, target: float | np.ndarray
) -> float | np.ndarray:
    """Returns the first step at which a curve is at its target or below, linear between its points.

    Nothing is known before the first point: a curve that is there at its first point gets that
    step, though it may have been there earlier. A curve that never is gets infinity.

    Args:
        steps: of the points, ascending.
        distances: (..., points).
        target: (...).

    Raises:
        ValueError: if the steps do not ascend, or are not as many as the distances.
    """
    steps, distances = np.asarray(steps, dtype=float), np.asarray(distances, dtype=float)
    if steps.ndim != 1 or distances.shape[-1:] != steps.shape or np.any(np.diff(steps) <= 0.0):
        raise ValueError(
            "`steps` must ascend and be as many as the distances. Received: "
            f"steps={steps.tolist()} and distances of shape {distances.shape}"
        )
    target = np.asarray(target, dtype=float)
    below = distances <= target[..., None]
    after = below.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    high, low = (np.take_along_axis(distances, i[..., None], -1)[..., 0] for i in (before, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (high - target) / (high - low)
    # Between a point that is not a number and one below the target nothing can be interpolated.
    share = np.where((after > 0) & np.isfinite(high), share, 1.0)
    reached = steps[before] + share * (steps[after] - steps[before])
    return np.where(below.any(axis=-1), reached, np.inf)[()]


def resamples(count: int) -> np.ndarray:
    """Returns draws of `count` from `count` with replacement (resamples, count): all n^n of them
    for n <= 5, else 10,000 by a fixed seed.

    Args:
        count: n.
    """
    if count**count <= MOST_ENUMERATED:
        return np.indices((count,) * count).reshape(count, -1).T
    return np.random.default_rng(0).integers(0, count, (DRAWN, count))


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], count: int
) -> tuple[Estimate, np.ndarray]:
    """Returns a statistic of seeds with its 95 % percentile interval over resamples of them, and
    its value in each resample; for one seed neither.

    Args:
        statistic: indices of seeds (resamples, n) -> its values (resamples,).
        count: n.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # of distances that are no numbers
        value = float(statistic(np.arange(count)[None])[0])
        if count < 2:
            return Estimate(value, None, count), np.array([])
        values = statistic(resamples(count))
        # Not interpolated, which would make the interval of three seeds narrower than their range.
        low, high = np.quantile(values, QUANTILES, method="inverted_cdf")
    return Estimate(value, (float(low), float(high)), count), values


def mean_over_seeds(values: Mapping[int, float]) -> Estimate | None:
    """Returns the mean over seeds, or None if there are none.

    Args:
        values: by seed.
    """
    numbers = np.array(list(values.values()))
    if not len(numbers):
        return None
    return bootstrap(lambda index: numbers[index].mean(axis=1), len(numbers))[0]


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], relative: bool = False
) -> Estimate | None:
    """Returns mean(values) - mean(baseline) over the seeds that both have, or None if none is.

    Args:
        values: by seed.
        baseline: by seed.
        relative: whether it is divided by mean(baseline), within each resample.
    """
    seeds = _common(values, baseline)
    if not seeds:
        return None
    ours, theirs = (np.array([v[seed] for seed in seeds]) for v in (values, baseline))

    def difference(index: np.ndarray) -> np.ndarray:
        expected = theirs[index].mean(axis=1)
        found = ours[index].mean(axis=1) - expected
        return found / expected if relative else found

    return bootstrap(difference, len(seeds))[0]


def one_sidedness(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> tuple[int, int, float]:
    """Returns how many seeds are lower, how many higher, and how often chance is as one-sided:
    the sign test's min(1, 2 sum_{k >= most} C(n, k) / 2^n), of the n seeds that differ.

    Args:
        values: by seed.
        baseline: by seed; seeds that only one of both has do not count.
    """
    differences = [values[seed] - baseline[seed] for seed in _common(values, baseline)]
    lower, higher = sum(d < 0.0 for d in differences), sum(d > 0.0 for d in differences)
    count = lower + higher
    tail = sum(math.comb(count, k) for k in range(max(lower, higher), count + 1))
    return lower, higher, min(1.0, 2.0 * tail / 2**count)


def steps_to_last(runs: Runs, baseline: Runs) -> Estimate | None:
    """Returns the steps that runs take to the baseline's last distance; infinity if they do not.

    Both curves are means over the seeds that both have; resamples draw the same seeds for both, and
    the target is the last point of the baseline's curve of the same resample.

    Args:
        runs: records by seed.
        baseline: records by seed.

    Returns:
        The steps with the share of resamples that missed the target; None without a common seed.
    """
    return _of_pace(runs, baseline, lambda needed, _: needed, np.inf)


def speed_up(runs: Runs, baseline: Runs) -> Estimate | None:
    """Returns steps of the baseline / steps of the runs, to the baseline's last distance.

    As for `steps_to_last`; a resample in which the target is not reached within the budget counts
    as infinitely many steps, a speed-up of 0.

    Args:
        runs: records by seed.
        baseline: records by seed.

    Returns:
        The speed-up with the share of resamples that missed the target; None without a common seed.
    """
    return _of_pace(runs, baseline, lambda needed, reference: reference / needed, 0.0)


def _of_pace(
    runs: Runs,
    baseline: Runs,
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    miss: float,
) -> Estimate | None:
    """A function of the steps that both take to the baseline's last distance; `miss` is its value
    where the runs do not get there.
    """
    seeds = _common(runs, baseline)
    if not seeds:
        return None
    runs, baseline = ({seed: r[seed] for seed in seeds} for r in (runs, baseline))
    (steps, ours), (_, theirs) = curves(runs), curves(baseline)

    def pace(index: np.ndarray) -> np.ndarray:
        expected = theirs[index].mean(axis=1)
        target = expected[:, -1]
        needed = steps_to_reach(steps, ours[index].mean(axis=1), target)
        return function(needed, steps_to_reach(steps, expected, target))

    estimate, values = bootstrap(pace, len(seeds))
    missed = float(np.mean(values == miss)) if len(values) else None
    return dataclasses.replace(estimate, missed=missed)


def last_improvement(runs: Runs, share: float = 0.2) -> float:
    """Returns the relative fall of the mean Frechet distance over the last part of the budget,
    1 - d(T) / d((1 - share) T); near 0 where the curve has flattened.

    Args:
        runs: records by seed, at least one.
        share: of the budget.
    """
    steps, distances = curves(runs)
    mean = distances.mean(axis=0)
    return float(1.0 - mean[-1] / np.interp((1.0 - share) * steps[-1], steps, mean))


def comparable_losses(runs: Runs, baseline: Runs) -> dict[int, np.ndarray]:
    """Returns the last validation loss of each noise cluster, by seed; only of runs whose loss has
    the weighting and the clusters of the baseline's.

    Args:
        runs: records by seed.
        baseline: records by seed.
    """

    def kind(record: dict) -> tuple:
        return record.get("weighting"), record.get("cluster_edges")

    wanted = [kind(record) for record in baseline.values()]
    return {
        seed: np.array([as_number(loss) for loss in record["curve"][-1]["cluster_loss"]])
        for seed, record in runs.items()
        if record["curve"][-1].get("cluster_loss") and kind(record) in wanted[:1]
    }


def cluster_losses(runs: Runs, baseline: Runs) -> list[tuple[Estimate, Estimate | None]]:
    """Returns, for each noise cluster, the mean last validation loss and its relative difference to
    the baseline's, paired by seed; an empty list if nothing can be compared.

    Args:
        runs: records by seed.
        baseline: records by seed.
    """
    ours, theirs = (comparable_losses(r, baseline) for r in (runs, baseline))
    estimates = []
    for cluster in range(len(next(iter(ours.values()), ()))):
        mine, other = ({s: losses[cluster] for s, losses in v.items()} for v in (ours, theirs))
        difference = paired_difference(mine, other, relative=True)
        estimates.append((mean_over_seeds(mine), difference))
    return estimates


def _common(values: Mapping, baseline: Mapping) -> list[int]:
    return sorted(set(values) & set(baseline))

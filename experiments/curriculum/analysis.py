"""What the records of results.jsonl say: means, paired differences and speed-ups over seeds.

Every interval is a 95 % percentile bootstrap over seeds: seeds are drawn with replacement, the
same ones for both of what is compared. One seed has no interval. Those of few seeds are too narrow,
see `COVERAGE`.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.stats
from settings import METHODS, SIZES, Setting

# Records that differ in one of these cannot be compared.
SHARED = (
    *("data", "steps", "batch_size", "trained_by", "extractor"),
    *("curve_samples", "final_samples", "reference_images"),
)
NEEDED = (
    *("run", "size", "setting", "method", "seed", "learning_rate"),
    *("parameters", "seconds_per_step", "stages", "final", "measured_by", "keras_cdiff"),
)
DIVERGED = 1.5  # times its lowest validation loss a diverged run has at its end

Runs = Mapping[int, dict]  # the records of a method, by seed
# How often the interval of n normal seeds holds their true mean, by simulating this code.
COVERAGE = {2: 0.50, 3: 0.75, 4: 0.80, 5: 0.85}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number over seeds, with its interval."""

    value: float  # of the seeds themselves
    interval: tuple[float, float] | None  # 95 %; None for one seed
    seeds: int
    missed: float | None = None  # share of resamples that do not reach the target of a speed-up


@dataclasses.dataclass(frozen=True)
class Results:
    """What there is of a setting; its methods are in the table's order, those without runs not."""

    name: str
    setting: Setting
    first: str  # the method that others are compared with; it may have no run yet
    titles: dict[str, str]  # by method
    runs: dict[str, Runs]  # by method, at the setting's learning rate
    curricula: list[str]  # the first method and its plain curricula
    controls: list[str]  # of the curricula
    weights: list[str]  # methods with another weighting of the loss
    grid: dict[str, tuple[int, int]]  # number of clusters and patience, where nothing else differs
    pairs: list[tuple[str, str]]  # a method and what it is compared with
    tuning: dict[str, dict[float, float]]  # final distance of seed 0 by learning rate, by method
    record: dict  # any of the setting, for what all have in common

    @property
    def seconds_per_step(self) -> float:
        """The least of all runs at the setting's learning rate, which take the same steps."""
        return min(r["seconds_per_step"] for runs in self.runs.values() for r in runs.values())

    @property
    def baseline(self) -> Runs:
        return self.runs.get(self.first, {})

    @property
    def compared(self) -> list[str]:
        """All methods that have runs, but those that only fill the grid."""
        groups = (*self.curricula, *self.controls, *self.weights)
        return [method for method in groups if method in self.runs]


def read_results(path: str | Path, size: str) -> list[dict]:
    """Returns the records of a size; of several of one run the last."""
    records = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            whole = all(name in record for name in (*NEEDED, *SHARED)) and bool(record["curve"])
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(
                f"Line {number} of {path} must be a run's record as measure.py writes it. "
                f"Received: {line[:80]!r}"
            )
        if record["size"] == size:
            records[record["run"]] = record
    return list(records.values())


def by_method(
    records: Iterable[dict], methods: Iterable[str], learning_rate: float
) -> dict[str, Runs]:
    """Returns a setting's records at a learning rate, by method and seed."""
    records = sorted(records, key=lambda record: record["seed"])
    check_comparable(records)
    runs = {
        method: {
            record["seed"]: record
            for record in records
            if record["method"] == method and record["learning_rate"] == learning_rate
        }
        for method in methods
    }
    return {method: found for method, found in runs.items() if found}


def check_comparable(records: Sequence[dict]) -> None:
    """Refuses records of a setting that were not trained or not measured alike."""

    def conditions(record: dict) -> dict:
        points = [point["step"] for point in record["curve"]]
        return {**{name: record[name] for name in SHARED}, "points": points}

    for record in records[1:]:
        expected, found = conditions(records[0]), conditions(record)
        for name, value in found.items():
            if value != expected[name]:
                raise ValueError(
                    f"Runs of one setting must agree in {name}: {expected[name]!r} of "
                    f"{records[0]['run']}. Received: {value!r} of {record['run']}"
                )


def final_distances(runs: Runs, metric: str = "frechet_distance") -> dict[int, float]:
    """Returns a distance after the last step, by seed."""
    return {seed: as_number(record["final"][metric]) for seed, record in runs.items()}


def curves(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points' steps, and their Frechet distances (seeds, points)."""
    points = [record["curve"] for record in runs.values()]
    distances = [[as_number(point["frechet_distance"]) for point in curve] for curve in points]
    return np.array([point["step"] for point in points[0]], dtype=float), np.array(distances)


def diverged(record: dict) -> bool:
    """Whether a run's last validation loss is far above its lowest, or none."""
    losses = [as_number(point["loss"]) for point in record["curve"] if "loss" in point]
    lowest = min((loss for loss in losses if math.isfinite(loss)), default=0.0)
    return bool(losses) and not losses[-1] <= DIVERGED * lowest


def tuning(records: Iterable[dict], method: str) -> dict[float, float]:
    """Returns the final Frechet distance of a method's seed 0, by ascending learning rate."""
    found = {
        record["learning_rate"]: as_number(record["final"]["frechet_distance"])
        for record in records
        if record["method"] == method and record["seed"] == 0
    }
    return dict(sorted(found.items()))


def as_number(value: float | str | None) -> float:
    """A number of strict JSON, which has null for what is none and "inf" for infinity."""
    return math.nan if value is None else float(value)


def gather(records: Sequence[dict], size: str) -> list[Results]:
    """Returns the records by setting and method, as the table knows them; settings without a record
    are left out.
    """
    for record in records:
        if record["setting"] not in SIZES[size] or record["method"] not in METHODS:
            raise ValueError(
                f"Records must be of the settings {sorted(SIZES[size])} and of a method of "
                f"settings.py. Received: {record['run']}"
            )
    found = {record["setting"] for record in records}
    return [
        _setting_results(name, setting, [r for r in records if r["setting"] == name])
        for name, setting in SIZES[size].items()
        if name in found
    ]


def _setting_results(name: str, setting: object, records: Sequence[dict]) -> Results:
    first = next(iter(setting.methods))
    measured = sorted({record["method"] for record in records} - set(setting.methods))
    methods = [*setting.methods, *measured]
    runs = by_method(records, methods, setting.preset["training"]["learning_rate"])
    options = {method: METHODS[method].options for method in methods}
    groups = {"curricula": [], "controls": [], "weights": []}
    plain = {}  # methods that name clusters, their number and patience alone, by kind of clusters
    for method in runs:
        if options[method].get("weighting") != options[first].get("weighting"):
            groups["weights"].append(method)
        elif METHODS[method].title.startswith("control"):
            groups["controls"].append(method)
        elif set(options[method]) - {"clusters"} == {"num_clusters", "patience"}:
            alike = plain.setdefault(options[method].get("clusters"), [])
            alike.append(method)
            if len(alike) == 1:  # the others fill the grid around it
                groups["curricula"].append(method)
        else:
            groups["curricula"].append(method)
    grid = max(plain.values(), key=len, default=[])
    return Results(
        name=name,
        setting=setting,
        first=first,
        titles={method: METHODS[method].title for method in methods},
        runs=runs,
        **groups,
        grid={m: (options[m]["num_clusters"], options[m]["patience"]) for m in grid},
        pairs=_pairs(first, groups, options),
        tuning={m: rates for m in methods if len(rates := tuning(records, m)) > 1},
        record=records[0],
    )


def _pairs(first: str, groups: Mapping[str, list], options: Mapping) -> list[tuple[str, str]]:
    """What is compared: all with the first, a curriculum with the same weights without it, and a
    curriculum with the controls of its clusters, and stages in order with their steps in none.
    """
    measured = [method for group in groups.values() for method in group]
    pairs = [(m, first) for m in measured if m != first] if first in measured else []

    def staged(methods: Sequence[str], wanted: bool = True) -> list[str]:
        return [m for m in methods if (options[m].get("curriculum") != "none") == wanted]

    def alike(kind: Callable, methods: Sequence[str], others: Sequence[str]) -> list[tuple]:
        return [(m, other) for other in others for m in methods if kind(m) == kind(other)]

    def clusters(method: str) -> tuple:
        return options[method].get("clusters"), METHODS[method].measured_clusters

    weights = groups["weights"]
    pairs += alike(lambda m: options[m].get("weighting"), staged(weights), staged(weights, False))
    pairs += alike(clusters, staged(groups["curricula"]), staged(groups["controls"]))
    orders = ((METHODS[method].unordered, method) for method in measured)
    return pairs + [pair for pair in orders if pair[0] in measured]


def steps_to_reach(
    steps: Sequence[float], distances: np.ndarray, target: float | np.ndarray
) -> float | np.ndarray:
    """Returns the first step at which a curve is at its target or below, linear between its points.

    Nothing is known before the first point: a curve that is there at its first point gets that
    step, though it may have been there earlier. A curve that never is gets infinity.
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


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], count: int
) -> tuple[Estimate, np.ndarray]:
    """Returns a statistic, a function of indices of seeds (..., n), with its 95 % percentile
    interval over resamples of them, and its value in each resample; for one seed neither.
    """
    # Distances may be no numbers, and steps infinite.
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        value = float(statistic(np.arange(count)))
        if count < 2:
            return Estimate(value, None, count), np.array([])
        values = scipy.stats.bootstrap(
            (np.arange(count),),
            lambda index, axis: statistic(index),
            method="percentile",
            random_state=0,
        ).bootstrap_distribution
        # Not interpolated, which would make the interval of three seeds narrower than their range.
        low, high = np.quantile(values, (0.025, 0.975), method="inverted_cdf")
    return Estimate(value, (float(low), float(high)), count), values


def mean_over_seeds(values: Mapping[int, float]) -> Estimate | None:
    """Returns the mean over seeds, or None if there are none."""
    numbers = np.array(list(values.values()))
    if not len(numbers):
        return None
    return bootstrap(lambda index: numbers[index].mean(axis=-1), len(numbers))[0]


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], relative: bool = False
) -> Estimate | None:
    """Returns mean(values) - mean(baseline) over the seeds that both have, or None if none is."""
    seeds = _common(values, baseline)
    if not seeds:
        return None
    ours, theirs = (np.array([v[seed] for seed in seeds]) for v in (values, baseline))

    def difference(index: np.ndarray) -> np.ndarray:
        expected = theirs[index].mean(axis=-1)
        found = ours[index].mean(axis=-1) - expected
        return found / expected if relative else found

    return bootstrap(difference, len(seeds))[0]


def one_sidedness(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> tuple[int, int, float]:
    """Returns how many seeds are lower, how many higher, and how often chance is as one-sided:
    the two-sided sign test of those that differ.
    """
    differences = [values[seed] - baseline[seed] for seed in _common(values, baseline)]
    lower, higher = sum(d < 0.0 for d in differences), sum(d > 0.0 for d in differences)
    chance = scipy.stats.binomtest(lower, lower + higher).pvalue if lower + higher else 1.0
    return lower, higher, chance


def steps_to_last(runs: Runs, baseline: Runs) -> Estimate | None:
    """Returns the steps that runs take to the baseline's last distance; infinity if they do not.

    Both curves are means over the seeds that both have; resamples draw the same seeds for both, and
    the target is the last point of the baseline's curve of the same resample.
    """
    return _of_pace(runs, baseline, lambda needed, _: needed, np.inf)


def speed_up(runs: Runs, baseline: Runs) -> Estimate | None:
    """Returns steps of the baseline / steps of the runs, to the baseline's last distance.

    As for `steps_to_last`; a resample in which the target is not reached within the budget counts
    as infinitely many steps, a speed-up of 0.
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
        expected = theirs[index].mean(axis=-2)
        target = expected[..., -1]
        needed = steps_to_reach(steps, ours[index].mean(axis=-2), target)
        return function(needed, steps_to_reach(steps, expected, target))

    estimate, values = bootstrap(pace, len(seeds))
    missed = float(np.mean(values == miss)) if len(values) else None
    return dataclasses.replace(estimate, missed=missed)


def last_improvement(runs: Runs, share: float = 0.2) -> float:
    """Returns the relative fall of the mean Frechet distance over the last part of the budget,
    1 - d(T) / d((1 - share) T); near 0 where the curve has flattened.
    """
    steps, distances = curves(runs)
    mean = distances.mean(axis=0)
    return float(1.0 - mean[-1] / np.interp((1.0 - share) * steps[-1], steps, mean))


def comparable_losses(runs: Runs, baseline: Runs) -> dict[int, np.ndarray]:
    """Returns the last validation loss of each noise cluster, by seed; only of runs whose loss has
    the weighting and the clusters of the baseline's.
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

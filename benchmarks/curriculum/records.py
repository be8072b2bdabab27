"""The records of results.jsonl: reading them, and those of one setting by method and seed."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

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


@dataclasses.dataclass(frozen=True)
class Results:
    """What there is of a setting; its methods are in the table's order, those without runs not.

    Attributes:
        name, setting: the table's.
        first: the method that others are compared with; it may have no run yet.
        titles: by method.
        runs: the records at the setting's learning rate, by method and seed.
        curricula, controls, weights: methods: the first and its plain curricula, the curricula's
            controls, and those with another weighting of the loss.
        grid: number of clusters and patience by method, where several differ in nothing else.
        pairs: (method, what it is compared with).
        tuning: final Frechet distance of seed 0 by learning rate, of each method that was tried
            with several.
        record: any of the setting, for what all have in common.
    """

    name: str
    setting: object
    first: str
    titles: dict[str, str]
    runs: dict[str, Runs]
    curricula: list[str]
    controls: list[str]
    weights: list[str]
    grid: dict[str, tuple[int, int]]
    pairs: list[tuple[str, str]]
    tuning: dict[str, dict[float, float]]
    record: dict

    @property
    def seconds_per_step(self) -> float:
        """The least of all runs at the setting's learning rate, which take the same steps."""
        return min(r["seconds_per_step"] for runs in self.runs.values() for r in runs.values())

    @property
    def baseline(self) -> Runs:
        return self.runs.get(self.first, {})


def read_results(path: str | Path, size: str) -> list[dict]:
    """Returns the records of a size; of several of one run the last.

    Args:
        path: results.jsonl.
        size: name of the table.

    Raises:
        ValueError: if a line is damaged, with its number.
    """
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
    """Returns a setting's records at a learning rate, by method and seed.

    Args:
        records: of one setting.
        methods: in the order wanted; those without a record are left out.
        learning_rate: records of others are left out.

    Raises:
        ValueError: if records cannot be compared.
    """
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
    """Refuses records of a setting that were not trained or not measured alike.

    Args:
        records: of one setting.

    Raises:
        ValueError: if two differ in budget, extractor or numbers of images, with their runs.
    """

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
    """Returns a distance after the last step, by seed.

    Args:
        runs: records by seed.
        metric: "frechet_distance" or "kernel_distance".
    """
    return {seed: as_number(record["final"][metric]) for seed, record in runs.items()}


def curves(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points' steps, and their Frechet distances (seeds, points).

    Args:
        runs: records by seed, at least one.
    """
    points = [record["curve"] for record in runs.values()]
    distances = [[as_number(point["frechet_distance"]) for point in curve] for curve in points]
    return np.array([point["step"] for point in points[0]], dtype=float), np.array(distances)


def diverged(record: dict) -> bool:
    """Whether a run's last validation loss is far above its lowest, or none.

    Args:
        record: of the run; one without validation losses tells nothing.
    """
    losses = [as_number(point["loss"]) for point in record["curve"] if "loss" in point]
    lowest = min((loss for loss in losses if math.isfinite(loss)), default=0.0)
    return bool(losses) and not losses[-1] <= DIVERGED * lowest


def tuning(records: Iterable[dict], method: str) -> dict[float, float]:
    """Returns the final Frechet distance of a method's seed 0, by ascending learning rate.

    Args:
        records: of one setting.
        method: which.
    """
    found = {
        record["learning_rate"]: as_number(record["final"]["frechet_distance"])
        for record in records
        if record["method"] == method and record["seed"] == 0
    }
    return dict(sorted(found.items()))


def as_number(value: float | str | None) -> float:
    """A number of strict JSON, which has null for what is none and "inf" for infinity."""
    return math.nan if value is None else float(value)

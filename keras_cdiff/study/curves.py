"""What was measured of an expert, and what a curve over training says of it."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_cdiff.training import Workdir


@dataclasses.dataclass
class ExpertCurves:
    """What was measured of one expert."""

    number: int  # 1..N, by ascending noise
    interval: tuple[float, float]  # its noise levels [low, high)
    steps: list[int]  # (K,) training steps at which the loss was measured, from 0 on
    loss: list[float]  # (K,) its loss on levels of the interval, of the weights themselves
    loss_error: list[float]  # (K,) standard errors of the loss, over images
    quality_steps: list[int]  # (Q,) training steps of `quality`; none where it was not measured
    quality: list[float]  # (Q,) Frechet distances of denoised images, lower is better
    floor: float | None  # that of the reference model in the expert's place; None without quality
    seconds: float  # time taken, measurements and compilation included

    @property
    def span(self) -> str:
        """The interval in words."""
        return "[{:.3g}, {:.3g})".format(*self.interval)


def read_curves(
    workdir: Workdir,
    number: int,
    interval: tuple[float, float],
    floor: float | str | None,
    seconds: float,
) -> ExpertCurves:
    """Reads the curves of an expert from its run; the other arguments are those of `ExpertCurves`,
    `floor` as JSON has it.
    """
    losses, qualities = map(read_records, (workdir.validation_file, workdir.evaluation_file))
    qualities = [record for record in qualities if record["metrics"]]
    return ExpertCurves(
        number=number,
        interval=interval,
        steps=[record["step"] for record in losses],
        loss=[_number(record["loss"]) for record in losses],
        loss_error=[_number(record["standard_error"]) for record in losses],
        quality_steps=[record["step"] for record in qualities],
        quality=[_number(record["metrics"]["frechet_distance"]) for record in qualities],
        floor=None if floor is None else _number(floor),
        seconds=seconds,
    )


def read_records(path: Path) -> list[dict]:
    """Returns the records of a file of JSON lines, if there is one; a torn line is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _number(value: float | str | None) -> float:
    return float("nan") if value is None else float(value)


def converged(values: Sequence[float]) -> float:
    """Returns the value that a curve has come to: the mean of its last tenth, one value at least.

    Args:
        values: (K,), from before training to its end.
    """
    values = np.asarray(values, dtype=np.float64)
    return float(np.mean(values[-max(1, len(values) // 10) :]))


def normalised(values: Sequence[float]) -> np.ndarray:
    """Returns a curve by its first and its converged value: 1 at first, 0 when converged.

        (L_k - L_converged) / (L_0 - L_converged)

    Args:
        values: (K,), from before training to its end.

    Returns:
        float64 (K,); all NaN if the curve has not fallen, or is not finite at its ends.
    """
    values = np.asarray(values, dtype=np.float64)
    drop = values[0] - converged(values)
    if not 0.0 < drop < np.inf:
        return np.full(values.shape, np.nan)
    return (values - converged(values)) / drop


def iterations_to_reach(
    steps: Sequence[int], values: Sequence[float], fraction: float = 0.9
) -> float:
    """Returns how many iterations it took a curve to come down by a fraction of its whole drop.

    Args:
        steps: (K,) iterations at which the curve was measured, ascending.
        values: (K,), from before training to its end.
        fraction: in (0, 1].

    Returns:
        The first crossing, interpolated linearly; NaN if the curve has not fallen.

    Raises:
        ValueError: if the fraction is out of range.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"`fraction` must be in (0, 1]. Received: fraction={fraction!r}")
    height = normalised(values)
    reached = np.flatnonzero(height <= 1.0 - fraction)
    if not len(reached):
        return float("nan")
    after = int(reached[0])
    if after == 0:
        return float(steps[0])
    ends = height[after], height[after - 1]
    return float(np.interp(1.0 - fraction, ends, (steps[after], steps[after - 1])))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns Spearman's rank correlation, ties having their mean rank; NaN if it has no meaning.

    Args:
        a, b: (K,); pairs that are not finite are left out, and three at least must remain.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    ranks = [_ranks(values[finite]) for values in (a, b)]
    if np.sum(finite) < 3 or any(np.ptp(rank) == 0.0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[places]

"""What was measured of an expert, as its records have it."""

import contextlib
import dataclasses
import json
from pathlib import Path

from keras_cdiff.training import Workdir


@dataclasses.dataclass
class ExpertCurves:
    """What was measured of one expert.

    Attributes:
        number: 1..N, by ascending noise.
        interval: its noise levels [low, high).
        steps: (K,) training steps at which the loss was measured, from 0 on.
        loss: (K,) its loss on levels of the interval, of the weights themselves.
        loss_error: (K,) standard errors of the loss, over images.
        quality_steps: (Q,) training steps at which the quality was measured; none without one.
        quality: (Q,) Frechet distances of denoised images, lower is better.
        floor: that of the reference model in the expert's place; None without quality.
        seconds: time taken, measurements and compilation included.
    """

    number: int
    interval: tuple[float, float]
    steps: list[int]
    loss: list[float]
    loss_error: list[float]
    quality_steps: list[int]
    quality: list[float]
    floor: float | None
    seconds: float


def read_curves(
    workdir: Workdir,
    number: int,
    interval: tuple[float, float],
    floor: float | str | None,
    seconds: float,
) -> ExpertCurves:
    """Reads the curves of an expert from the records of its run.

    Args:
        workdir: of the run.
        number, interval, seconds: as in `ExpertCurves`.
        floor: the same, as JSON has it.
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
    """Returns the records of a file of JSON lines, none if it is missing; a line that a killed
    process did not finish is left out.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _number(value: float | str | None) -> float:
    return float("nan") if value is None else float(value)

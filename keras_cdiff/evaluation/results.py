"""The result of an evaluation: the numbers, and everything they depend on."""

import csv
import dataclasses
import datetime
import io
import json
import os
from pathlib import Path

from keras_cdiff.common.files import strict_json, write_whole

_COLUMNS = {
    "time": ("time",),
    "frechet_distance": ("metrics", "frechet_distance"),
    "frechet_distance_infinity": ("metrics", "frechet_distance_infinity"),
    "frechet_distance_infinity_error": ("metrics", "frechet_distance_infinity_error"),
    "kernel_distance": ("metrics", "kernel_distance"),
    "kernel_distance_std": ("metrics", "kernel_distance_std"),
    "inception_score": ("metrics", "inception_score"),
    "inception_score_std": ("metrics", "inception_score_std"),
    "precision": ("metrics", "precision"),
    "recall": ("metrics", "recall"),
    "generated": ("generated", "images"),
    "num_generated": ("generated", "count"),
    "reference": ("reference", "images"),
    "num_reference": ("reference", "count"),
    "extractor": ("extractor", "name"),
    "extractor_version": ("extractor", "version"),
    "extractor_image_size": ("extractor", "image_size"),
    "resize": ("extractor", "resize"),
    "sampler": ("generated", "sampler"),
    "num_steps": ("generated", "num_steps"),
    "guidance": ("generated", "guidance"),
    "guidance_interval": ("generated", "guidance_interval"),
    "seeds": ("generated", "seeds"),
    "use_ema": ("generated", "use_ema"),
    "ema": ("generated", "ema"),
    "iteration": ("generated", "iteration"),
    "weights": ("generated", "weights"),
    "backend": ("backend",),
    "keras_cdiff": ("keras_cdiff",),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of `Evaluator.evaluate`.

    Attributes:
        record: the whole of it as plain data: metrics, both sets of images, the extractor,
            the metrics' settings, notes, version and time.
    """

    record: dict

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name."""
        return self.record["metrics"]

    def write(self, folder: str | os.PathLike) -> tuple[Path, Path]:
        """Writes the record as FOLDER/evaluation-TIME.json, and a row of FOLDER/evaluations.csv.

        Returns:
            The two paths.
        """
        time = self.record["time"].split("+")[0].replace(":", "")
        record, table = Path(folder) / f"evaluation-{time}.json", Path(folder) / "evaluations.csv"
        self.write_json(record)
        self.append_csv(table)
        return record, table

    def write_json(self, path: str | os.PathLike) -> None:
        """Writes the record to a file that is there whole or not at all."""
        text = json.dumps(strict_json(self.record), indent=2, allow_nan=False) + "\n"
        write_whole(Path(path), lambda part: part.write_text(text))

    def append_csv(self, path: str | os.PathLike) -> None:
        """Appends a row to a table, which begins with a line of column names.

        Raises:
            ValueError: if the file is a table of other columns.
        """
        path = Path(path)
        header = _line(_COLUMNS)
        row = _line(_cell(self.record, keys) for keys in _COLUMNS.values())
        if path.exists() and path.stat().st_size:
            with open(path, newline="") as file:
                first = file.readline()
            if first != header:
                raise ValueError(
                    "The file must be a table that an evaluation of this version wrote: choose "
                    f"another one. Received: path={str(path)!r}, which begins {first[:80]!r}"
                )
            header = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", newline="") as file:
            file.write(header + row)  # at once, so that two processes do not mix their rows

    def __str__(self) -> str:
        sides = (
            f"{self.record[side]['images']} ({self.record[side]['count'] or 'unknown number'})"
            for side in ("generated", "reference")
        )
        extractor = self.record["extractor"]
        size = extractor["image_size"]
        size = "at their own size" if size is None else f"at {size[0]} x {size[1]}"
        lines = [
            " against ".join(sides),
            f"  {extractor['name']} {size}, version {extractor['version']}, "
            f"resize {extractor['resize']}",
        ]
        lines += [f"  {name:<34}{value:.6g}" for name, value in self.metrics.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.record["notes"])])


def now() -> str:
    """Returns the time in UTC, as ISO 8601 writes it, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _cell(record: dict, keys: tuple[str, ...]) -> object:
    value = record
    for key in keys:
        value = None if value is None else value.get(key)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _line(cells: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()

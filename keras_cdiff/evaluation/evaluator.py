"""Evaluator: metrics between two sets of images, with everything that they depend on."""

import csv
import dataclasses
import datetime
import io
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import strict_json, write_whole
from keras_cdiff.distribution import sharing
from keras_cdiff.evaluation.extraction import Features, extract
from keras_cdiff.evaluation.features import Extractor, from_model
from keras_cdiff.evaluation.frechet import frechet_distance, frechet_distance_infinity
from keras_cdiff.evaluation.image_sets import ImageSet, SourceImages
from keras_cdiff.evaluation.inception_score import inception_score
from keras_cdiff.evaluation.kernel import kernel_distance
from keras_cdiff.evaluation.precision_recall import precision_recall
from keras_cdiff.evaluation.statistics import FeatureStatistics
from keras_cdiff.version import __version__

METRICS = (
    "frechet_distance",
    "kernel_distance",
    "inception_score",
    "precision_recall",
    "frechet_distance_infinity",
)

# With fewer samples than this the bias of a Frechet distance is no longer small.
ENOUGH_SAMPLES = 10_000

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
    """The outcome of `Evaluator.evaluate`: `record` is plain data, with metrics, both sets of
    images, the extractor, the metrics' settings, notes, version and time.
    """

    record: dict

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name."""
        return self.record["metrics"]

    def write(self, folder: str | os.PathLike) -> tuple[Path, Path]:
        """Writes FOLDER/evaluation-TIME.json and a row of FOLDER/evaluations.csv; returns both."""
        time = self.record["time"].split("+")[0].replace(":", "")
        record, table = Path(folder) / f"evaluation-{time}.json", Path(folder) / "evaluations.csv"
        self.write_json(record)
        self.append_csv(table)
        return record, table

    def write_json(self, path: str | os.PathLike) -> None:
        """Writes the record to a file, atomically."""
        text = json.dumps(strict_json(self.record), indent=2, allow_nan=False) + "\n"
        write_whole(Path(path), lambda part: part.write_text(text))

    def append_csv(self, path: str | os.PathLike) -> None:
        """Appends a row to a table; raises a ValueError if it is one of other columns."""
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


class Evaluator:
    """Compares sets of images by what one extractor sees in them.

    The features of a reference are kept; with `cache` they are kept on disk, and an interrupted
    extraction goes on where it stopped. Under `distribution.shared_by` the processes share the
    images, and all return the result.

    Args:
        extractor: the network that sees the images; a `keras.Model` becomes one by `from_model`.
        metrics: names in `METRICS`; None for all that can be had, except
            "frechet_distance_infinity", which must be named.
        cache: folder for features on disk; None keeps them in memory.
        cache_generated: whether those of generated images go there too.
        batch_size: images the extractor sees at once.
        k: neighbours that make the manifolds of precision and recall.
        num_subsets, subset_size: of the kernel distance; the size is at most that of the smaller
            set.
        splits: of the Inception Score, into which the images are shuffled; at most half as many as
            there are images.
        seed: of subsets, splits and the extrapolation.
        progress: whether progress bars are shown.

    Example:

    ```python
    evaluator = evaluation.Evaluator(evaluation.open_extractor("inception"))
    result = evaluator.evaluate("npz:samples.npz", "tfds:cifar10:train")
    print(result)
    result.write_json("evaluation.json")
    ```
    """

    def __init__(
        self,
        extractor: Extractor | keras.Model,
        metrics: Sequence[str] | None = None,
        *,
        cache: str | os.PathLike | None = None,
        cache_generated: bool = True,
        batch_size: int = 64,
        k: int = 3,
        num_subsets: int = 100,
        subset_size: int = 1000,
        splits: int = 10,
        seed: int = 0,
        progress: bool = True,
    ):
        if isinstance(extractor, keras.Model):
            extractor = from_model(extractor)
        unknown = [name for name in metrics or () if name not in METRICS]
        if unknown or (metrics is not None and len(metrics) == 0):
            raise ValueError(
                f"`metrics` must be names among {', '.join(METRICS)}. Received: metrics={metrics!r}"
            )
        if "inception_score" in (metrics or ()) and not extractor.num_logits:
            raise ValueError(
                "The Inception Score needs an extractor with logits: choose another one, or leave "
                f"the metric out. Received: extractor={extractor.name!r}, without logits"
            )
        self.extractor, self.metrics = extractor, metrics
        self.cache, self.cache_generated, self.progress = cache, cache_generated, progress
        for name, value, least, meaning in (
            ("batch_size", batch_size, 1, "images the extractor sees at once"),
            ("k", k, 1, "neighbours that make the manifolds"),
            ("num_subsets", num_subsets, 1, "of the kernel distance"),
            ("subset_size", subset_size, 2, "images in each of them"),
            ("splits", splits, 1, "of the Inception Score"),
            ("seed", seed, 0, "of subsets and splits"),
        ):
            setattr(self, name, check_integer(name, value, least, None, meaning))
        self._reference: tuple[str, Features, FeatureStatistics] | None = None

    def evaluate(
        self,
        generated: ImageSet | str | np.ndarray,
        reference: ImageSet | FeatureStatistics | str | np.ndarray,
    ) -> Result:
        """Returns the metrics of `generated` against `reference`.

        Args:
            generated: an image set, or what `SourceImages` takes.
            reference: the same; or statistics, a `FeatureStatistics` or "statistics:PATH", with
                which only the Frechet distance can be had.

        Raises:
            ValueError: if a set cannot be read or is too small for a metric, or the statistics are
                those of another extractor.

        Warns:
            UserWarning: if a set is so small that the Frechet distance is biased.
        """
        generated, reference = as_images(generated), as_reference(reference)
        names = self.check(generated, reference)
        theirs, statistics = None, reference
        if isinstance(reference, ImageSet):
            theirs, statistics = self._extract_reference(reference)
        ours = self._extract(generated, self.cache if self.cache_generated else None)

        counts = [len(ours.features), statistics.count]
        settings: dict[str, object] = {}
        metrics: dict[str, float] = {}
        if "frechet_distance" in names:
            metrics["frechet_distance"] = frechet_distance(statistics, ours.features)
        if "frechet_distance_infinity" in names:
            value, error = frechet_distance_infinity(statistics, ours.features, seed=self.seed)
            metrics["frechet_distance_infinity"] = value
            metrics["frechet_distance_infinity_error"] = error
        if "kernel_distance" in names:
            size = min(self.subset_size, *counts)
            settings |= {"num_subsets": self.num_subsets, "subset_size": size}
            metrics["kernel_distance"], metrics["kernel_distance_std"] = kernel_distance(
                theirs.features, ours.features, self.num_subsets, size, self.seed
            )
        if "inception_score" in names:
            settings["splits"] = splits = min(self.splits, counts[0] // 2)
            metrics["inception_score"], metrics["inception_score_std"] = inception_score(
                ours.logits, splits, seed=self.seed
            )
        if "precision_recall" in names:
            settings["k"] = self.k
            metrics["precision"], metrics["recall"] = precision_recall(
                theirs.features, ours.features, self.k
            )
        described = generated.describe(), _describe(reference)
        return Result(
            {
                "metrics": metrics,
                "generated": described[0],
                "reference": described[1],
                "extractor": self.extractor.describe(),
                "settings": {**settings, "seed": self.seed},
                "notes": _notes(names, *described),
                "backend": keras.backend.backend(),
                "keras_cdiff": __version__,
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            }
        )

    def check(
        self, generated: ImageSet, reference: ImageSet | FeatureStatistics | str | np.ndarray
    ) -> list[str]:
        """Returns the names of the metrics that there will be, or raises as `evaluate`, before
        anything is extracted.
        """
        reference = as_reference(reference)
        names = self._names(reference)
        sets = {"generated": generated, "reference": reference}
        least = max(2, self.k + 1 if "precision_recall" in names else 2)
        least = max(least, 3 if "frechet_distance_infinity" in names else 2)
        for side, images in sets.items():
            if isinstance(images, ImageSet) and len(images) < least:
                raise ValueError(
                    f"A set needs at least {least} images for {', '.join(names)}: give more, or "
                    "other metrics. "
                    f"Received: {side} images {images.name!r}, of which there are {len(images)}"
                )
        if isinstance(reference, FeatureStatistics):
            self._check_statistics(reference)
        return names

    def statistics(self, images: ImageSet | str | np.ndarray) -> FeatureStatistics:
        """Returns the statistics of a set's features, which `evaluate` takes as a reference."""
        images = as_images(images)
        _, statistics = self._extract_reference(images)
        statistics = statistics.copy()
        statistics.description = {**images.describe(), "extractor": self.extractor.describe()}
        return statistics

    def _names(self, reference: ImageSet | FeatureStatistics) -> list[str]:
        """The metrics that are wanted and can be had."""
        without = ("kernel_distance", "precision_recall")  # they compare single features
        alone = isinstance(reference, FeatureStatistics)
        if self.metrics is None:
            names = [name for name in METRICS if name != "frechet_distance_infinity"]
            if not self.extractor.num_logits:
                names.remove("inception_score")
            return [name for name in names if not (alone and name in without)]
        if alone and set(self.metrics) & set(without):
            raise ValueError(
                "Statistics hold no single features, which the kernel distance, precision and "
                "recall compare: give the reference's images, or leave these metrics out. "
                f"Received: metrics={self.metrics!r}, reference statistics"
            )
        return list(self.metrics)

    def _extract(self, images: ImageSet, cache: str | os.PathLike | None) -> Features:
        return extract(images, self.extractor, cache, self.batch_size, self.progress)

    def _extract_reference(self, images: ImageSet) -> tuple[Features, FeatureStatistics]:
        """The features of the set and their statistics, kept until another reference comes."""
        digest = images.digest()
        if self._reference is None or self._reference[0] != digest:
            features = self._extract(images, self.cache)
            self._reference = (digest, features, FeatureStatistics.of(features.features))
        return self._reference[1:]

    def _check_statistics(self, statistics: FeatureStatistics) -> None:
        theirs, ours = statistics.description.get("extractor"), self.extractor.describe()
        if theirs is not None and theirs != ours:
            raise ValueError(
                "The reference's statistics were made with another extractor: make them anew, or "
                f"choose that extractor. Received: statistics of {theirs}, extractor {ours}"
            )
        if len(statistics.mean) != self.extractor.feature_width:
            raise ValueError(
                "The reference's statistics must have the extractor's "
                f"{self.extractor.feature_width} features. Received: {len(statistics.mean)}"
            )


def as_images(images: ImageSet | str | np.ndarray) -> ImageSet:
    """Returns an image set as it is, and anything else as `SourceImages`."""
    return images if isinstance(images, ImageSet) else SourceImages(images)


def as_reference(
    reference: ImageSet | FeatureStatistics | str | np.ndarray,
) -> ImageSet | FeatureStatistics:
    """Returns an image set or statistics for whatever names one."""
    if isinstance(reference, FeatureStatistics):
        return reference
    if isinstance(reference, str) and reference.startswith("statistics:"):
        path = Path(reference.removeprefix("statistics:"))
        statistics = FeatureStatistics.load(path)
        statistics.description = {"images": reference, **statistics.description}
        return statistics
    return as_images(reference)


def _describe(reference: ImageSet | FeatureStatistics) -> dict:
    if isinstance(reference, ImageSet):
        return reference.describe()
    described = {"images": "statistics", **reference.description, "count": reference.count}
    described.pop("extractor", None)
    return described


def _notes(names: Sequence[str], generated: dict, reference: dict) -> list[str]:
    """What should be known about the numbers; the first two are also given as warnings."""
    notes = []
    counts = [generated["count"], reference["count"]]
    known = [count for count in counts if count is not None]
    if "frechet_distance" in names and min(known) < ENOUGH_SAMPLES:
        notes.append(
            f"the Frechet distance of {min(known):,} images is biased upwards: compare it only "
            f"with others of as many, use at least {ENOUGH_SAMPLES:,}, or ask for "
            "frechet_distance_infinity"
        )
    sizes = [side.get("image_size") for side in (generated, reference)]
    if None not in sizes and sizes[0] != sizes[1]:
        notes.append(
            f"images of {sizes[0][0]} x {sizes[0][1]} pixels are compared with a reference of "
            f"{sizes[1][0]} x {sizes[1][1]}, so the distance measures the sharpness of the "
            "reference as well: prepare both at one image_size"
        )
    for note in notes if sharing().first else ():
        warnings.warn(note, stacklevel=3)
    if len(known) < len(counts):
        notes.append("the number of images behind the reference's statistics is not known")
    return notes


def _cell(record: dict, keys: tuple[str, ...]) -> object:
    value = record
    for key in keys:
        value = None if value is None else value.get(key)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _line(cells: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()

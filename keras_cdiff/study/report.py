"""The report of a study: figures, numbers as CSV, clusters as JSON, and a page in words."""

import csv
import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_cdiff.common.files import write_whole
from keras_cdiff.curriculum import Clusters, difficulty_clusters
from keras_cdiff.evaluation.validation_loss import cumulative_mass
from keras_cdiff.objectives import Objective
from keras_cdiff.schedules import Schedule
from keras_cdiff.study.curves import ExpertCurves, converged, iterations_to_reach, normalised
from keras_cdiff.study.page import report_page
from keras_cdiff.study.plots import (
    plot_clusters,
    plot_entropy,
    plot_iterations,
    plot_losses,
    plot_qualities,
)
from keras_cdiff.study.relative_entropy import EntropyCurve, log_snr
from keras_cdiff.training.building import make_clusters
from keras_cdiff.training.configuration import CLUSTERS

FRACTIONS = (0.5, 0.9)


def write_report(
    folder: str | os.PathLike,
    config: dict,
    entropies: Sequence[EntropyCurve],
    experts: Sequence[ExpertCurves] = (),
    num_clusters: int | None = None,
    conditions: Sequence[str] = (),
) -> Path:
    """Writes REPORT.md, which says what a study has found, and beside it the figures as PNG, the
    numbers as CSV and the clusters of equal difficulty as JSON, for apps/train.py --clusters.

    Args:
        folder: where to; made if missing.
        config: the resolved configuration that was studied.
        entropies: relative entropies, the first along the configuration's own schedule.
        experts: what was measured of the experts, if there are any.
        num_clusters: of equal difficulty; None for the configuration's number.
        conditions: sentences on how it was measured, for the page.

    Returns:
        The path of REPORT.md.
    """
    folder = Path(folder)
    schedule = keras.saving.deserialize_keras_object(config["model"]["schedule"])
    objective = keras.saving.deserialize_keras_object(config["model"]["objective"])
    partitions = _partitions(config, objective, entropies, experts, num_clusters)
    # Of an earlier report not every file may be written again.
    for stem in ("clusters*", "experts", "iterations", "losses", "qualities", "relative_entropy*"):
        for suffix in (".csv", ".json", ".png"):
            for path in folder.glob(stem + suffix):
                path.unlink()
    for clusters in partitions:
        if clusters.name.startswith("difficulty"):
            clusters.save(folder / f"clusters_{clusters.name.removeprefix('difficulty: ')}.json")
    if experts:
        _write_experts(folder, schedule, experts)
        plot_losses(experts, folder / "losses")
        plot_iterations(experts, folder / "iterations", FRACTIONS)
        if all(expert.quality for expert in experts):
            plot_qualities(experts, folder / "qualities")
    for curve in entropies:
        plot_entropy(curve, folder / f"relative_entropy_{curve.name}")
    _write_entropies(folder, entropies)
    plot_clusters(partitions, schedule, folder / "clusters")
    _write_clusters(folder, schedule, partitions)
    page = folder / "REPORT.md"
    text = report_page(config, entropies, experts, conditions)
    write_whole(page, lambda path: path.write_text(text))
    return page


def convergence_clusters(
    experts: Sequence[ExpertCurves], objective: Objective, num_clusters: int, fraction: float = 0.9
) -> Clusters:
    """Returns clusters that take equally many iterations to converge, judged by the experts.

    Within its interval an expert's iterations have the objective's density.

    Args:
        experts: by ascending noise.
        objective: what draws levels.
        num_clusters: N.
        fraction: of the drop of an expert's loss, at which its iterations are counted.

    Raises:
        ValueError: if the loss of an expert did not fall.
    """
    needed = [iterations_to_reach(expert.steps, expert.loss, fraction) for expert in experts]
    edges = np.array([experts[0].interval[0], *(expert.interval[1] for expert in experts)])
    if objective.coordinate == "timestep":
        clusters = difficulty_clusters(edges.astype(np.int64), needed, num_clusters)
        return dataclasses.replace(clusters, name="difficulty: convergence")
    low, high = objective.support
    mass = cumulative_mass(objective, np.clip(edges, low, high))
    parts = difficulty_clusters(mass, needed, num_clusters).edges
    inner = objective.host_quantile(parts[1:-1])
    edges = [edges[0], *inner.tolist(), edges[-1]]
    return Clusters(edges, "difficulty: convergence", objective.coordinate)


def _partitions(
    config: dict,
    objective: Objective,
    entropies: Sequence[EntropyCurve],
    experts: Sequence[ExpertCurves],
    num_clusters: int | None,
) -> list[Clusters]:
    """The partitions by rule, and those by what was measured."""
    count = num_clusters or config["curriculum"]["num_clusters"]
    partitions = []
    for kind in CLUSTERS:
        with warnings.catch_warnings():  # of single timesteps: the figure shows them
            warnings.simplefilter("ignore", UserWarning)
            clusters = make_clusters(config["model"], {"clusters": kind, "num_clusters": count})
        if not any(np.array_equal(clusters.edges, other.edges) for other in partitions):
            partitions.append(dataclasses.replace(clusters, name=kind))
    curve = entropies[0]
    # An estimate of next to nothing may be below nothing.
    estimate = np.maximum(curve.estimate, 0.0)
    equal = difficulty_clusters(curve.levels, estimate, count, curve.schedule)
    partitions.append(dataclasses.replace(equal, name="difficulty: relative_entropy"))
    if experts and np.all(np.isfinite([iterations_to_reach(e.steps, e.loss) for e in experts])):
        partitions.append(convergence_clusters(experts, objective, count))
    return partitions


def _write_experts(folder: Path, schedule: Schedule, experts: Sequence[ExpertCurves]) -> None:
    rows, losses, qualities = [], [], []
    for e in experts:
        low, high = e.interval
        head = e.number, low, high
        snr = log_snr(schedule, np.minimum([high, low], schedule.bounds[1]))
        needed = (iterations_to_reach(e.steps, e.loss, fraction) for fraction in FRACTIONS)
        ends = (e.quality[0], e.quality[-1]) if e.quality else (None, None)
        rows.append((*head, *snr, e.loss[0], converged(e.loss), *needed, *ends, e.floor, e.seconds))
        columns = zip(e.steps, e.loss, e.loss_error, normalised(e.loss), strict=False)
        losses += [(*head, *row) for row in columns]
        qualities += [(*head, *row) for row in zip(e.quality_steps, e.quality, strict=True)]
    names = "log_snr_low,log_snr_high,loss_first,loss_converged,iterations_50%,iterations_90%"
    names += ",quality_first,quality_last,quality_reference,seconds"
    _write_csv(folder / "experts.csv", f"expert,low,high,{names}", rows)
    names = "expert,low,high,step,loss,standard_error,normalised"
    _write_csv(folder / "losses.csv", names, losses)
    if qualities:
        _write_csv(folder / "qualities.csv", "expert,low,high,step,frechet_distance", qualities)


def _write_entropies(folder: Path, entropies: Sequence[EntropyCurve]) -> None:
    rows = []
    for curve in entropies:
        columns = (curve.levels, curve.log_snr, curve.estimate, curve.error)
        per_dimension = (curve.estimate / curve.num_dimensions, curve.error / curve.num_dimensions)
        columns = zip(*columns, *per_dimension, curve.per_level, strict=True)
        rows += [(curve.name, *row) for row in columns]
    names = "schedule,level,log_snr,nats,standard_error,nats_per_dimension"
    names += ",standard_error_per_dimension,nats_by_steps_of_level"
    _write_csv(folder / "relative_entropy.csv", names, rows)


def _write_clusters(folder: Path, schedule: Schedule, partitions: Sequence[Clusters]) -> None:
    rows = []
    for clusters in partitions:
        values = log_snr(schedule, np.minimum(clusters.edges, schedule.bounds[1]))
        edges = zip(clusters.edges, values, strict=True)
        rows += [(clusters.name, number, *edge) for number, edge in enumerate(edges)]
    _write_csv(folder / "clusters.csv", "clusters,edge,level,log_snr", rows)


def _write_csv(path: Path, names: str, rows: Sequence[tuple]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([names.split(","), *rows])

    write_whole(path, write)

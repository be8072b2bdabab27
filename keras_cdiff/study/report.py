"""The report of a study: figures, every number as CSV, clusters as JSON, and a page in words."""

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
from keras_cdiff.study.entropy_curve import EntropyCurve, log_snr
from keras_cdiff.study.page import report_page
from keras_cdiff.study.plots import (
    plot_clusters,
    plot_entropy,
    plot_iterations,
    plot_losses,
    plot_qualities,
)
from keras_cdiff.training.building import make_clusters
from keras_cdiff.training.curriculum_settings import CLUSTERS

FRACTIONS = (0.5, 0.9)


def write_report(
    folder: str | os.PathLike,
    config: dict,
    entropies: Sequence[EntropyCurve],
    experts: Sequence[ExpertCurves] = (),
    num_clusters: int | None = None,
    conditions: Sequence[str] = (),
) -> Path:
    """Writes the report of a study into a folder.

    REPORT.md says what was found; the figures lie beside it as PNG, every number in
    experts.csv, losses.csv, qualities.csv, relative_entropy.csv and clusters.csv, and the clusters
    of equal difficulty in clusters_relative_entropy.json and clusters_convergence.json, for
    apps/train.py --clusters.

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
    _remove_report(folder)
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


def _remove_report(folder: Path) -> None:
    """Removes an earlier report of the study, of which not every file may be written again."""
    for stem in ("clusters*", "experts", "iterations", "losses", "qualities", "relative_entropy*"):
        for suffix in (".csv", ".json", ".png"):
            for path in folder.glob(stem + suffix):
                path.unlink()


def convergence_clusters(
    experts: Sequence[ExpertCurves], objective: Objective, num_clusters: int, fraction: float = 0.9
) -> Clusters:
    """Returns clusters that take equally many iterations to converge, judged by the experts.

    An expert's iterations are spread over its interval as the objective draws levels there.

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
    for expert in experts:
        low, high = expert.interval
        head = {"expert": expert.number, "low": low, "high": high}
        snr = log_snr(schedule, np.minimum(np.array([high, low]), schedule.bounds[1]))
        rows.append(
            {
                **head,
                "log_snr_low": snr[0],
                "log_snr_high": snr[1],
                "loss_first": expert.loss[0],
                "loss_converged": converged(expert.loss),
                **{
                    f"iterations_{fraction:.0%}": iterations_to_reach(
                        expert.steps, expert.loss, fraction
                    )
                    for fraction in FRACTIONS
                },
                "quality_first": expert.quality[0] if expert.quality else None,
                "quality_last": expert.quality[-1] if expert.quality else None,
                "quality_reference": expert.floor,
                "seconds": expert.seconds,
            }
        )
        columns = (expert.steps, expert.loss, expert.loss_error, normalised(expert.loss))
        names = ("step", "loss", "standard_error", "normalised")
        losses += [{**head, **dict(zip(names, row, strict=True))} for row in zip(*columns)]  # noqa: B905
        for step, distance in zip(expert.quality_steps, expert.quality, strict=True):
            qualities.append({**head, "step": step, "frechet_distance": distance})
    _write_csv(folder / "experts.csv", rows)
    _write_csv(folder / "losses.csv", losses)
    if qualities:
        _write_csv(folder / "qualities.csv", qualities)


def _write_entropies(folder: Path, entropies: Sequence[EntropyCurve]) -> None:
    rows = []
    for curve in entropies:
        columns = (curve.levels, curve.log_snr, curve.estimate, curve.error, curve.per_level)
        for level, snr, estimate, error, per_level in zip(*columns, strict=True):
            rows.append(
                {
                    "schedule": curve.name,
                    "level": level,
                    "log_snr": snr,
                    "nats": estimate,
                    "standard_error": error,
                    "nats_per_dimension": estimate / curve.num_dimensions,
                    "standard_error_per_dimension": error / curve.num_dimensions,
                    "nats_by_steps_of_level": per_level,
                }
            )
    _write_csv(folder / "relative_entropy.csv", rows)


def _write_clusters(folder: Path, schedule: Schedule, partitions: Sequence[Clusters]) -> None:
    rows = []
    for clusters in partitions:
        values = log_snr(schedule, np.minimum(clusters.edges, schedule.bounds[1]))
        for number, (edge, snr) in enumerate(zip(clusters.edges, values, strict=True)):
            rows.append({"clusters": clusters.name, "edge": number, "level": edge, "log_snr": snr})
    _write_csv(folder / "clusters.csv", rows)


def _write_csv(path: Path, rows: list[dict]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)

"""The figures of a difficulty study, and what those of other pages share, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_cdiff.common.files import write_whole
from keras_cdiff.curriculum import Clusters
from keras_cdiff.schedules import Schedule
from keras_cdiff.study.curves import ExpertCurves, converged, iterations_to_reach, normalised
from keras_cdiff.study.relative_entropy import EntropyCurve, log_snr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_losses(experts: Sequence[ExpertCurves], path: str | Path) -> None:
    """Draws the normalised loss of each expert against its iterations."""
    figure, axes = new_figure("iterations", "loss, 1 at first, 0 when converged")
    for expert, colour in zip(experts, _colours(len(experts)), strict=True):
        axes.plot(expert.steps, normalised(expert.loss), color=colour, label=expert.span)
    axes.axhline(0.1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.1, 1.1)
    _legend(axes)
    save_figure(figure, path)


def plot_qualities(experts: Sequence[ExpertCurves], path: str | Path) -> None:
    """Draws the Frechet distance of each expert's images, and dashed that of the reference's."""
    figure, axes = new_figure("iterations", "Frechet distance of denoised images")
    for expert, colour in zip(experts, _colours(len(experts)), strict=True):
        axes.plot(expert.quality_steps, expert.quality, "o-", color=colour, label=expert.span)
        if expert.floor is not None:
            axes.axhline(expert.floor, color=colour, linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    _legend(axes)
    save_figure(figure, path)


def plot_iterations(
    experts: Sequence[ExpertCurves], path: str | Path, fractions: Sequence[float] = (0.5, 0.9)
) -> None:
    """Draws, for each interval, the iterations that its expert took to fractions of its drop."""
    figure, axes = new_figure("interval, by ascending noise", "iterations")
    numbers = [expert.number for expert in experts]
    for fraction in fractions:
        needed = [iterations_to_reach(e.steps, e.loss, fraction) for e in experts]
        axes.plot(numbers, needed, "o-", label=f"{fraction:.0%} of the loss's drop")
    axes.set_xticks(numbers, [e.span for e in experts], rotation=45, ha="right", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    twin = axes.twinx()
    twin.plot(numbers, [converged(e.loss) for e in experts], "s:", color="grey")
    twin.set_ylabel("converged loss (grey squares)")
    save_figure(figure, path)


def plot_entropy(curve: EntropyCurve, path: str | Path) -> None:
    """Draws the relative entropy against the level, both logarithmic, with standard errors."""
    unit = "nats from t - 1 to t" if curve.discrete else "nats per squared unit of log SNR"
    label = curve.schedule.coordinate
    figure, axes = new_figure(f"{curve.name}: {label}", f"relative entropy, {unit}")
    axes.errorbar(curve.levels, curve.estimate, yerr=curve.error, fmt="o-", markersize=3, capsize=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    least, most = np.min(curve.estimate), np.max(curve.estimate)
    if most < 10.0 * least:  # what is flat shall look flat
        middle = np.sqrt(least * most)
        axes.set_ylim(middle / 10.0**0.5, middle * 10.0**0.5)
    save_figure(figure, path)


def plot_clusters(partitions: Sequence[Clusters], schedule: Schedule, path: str | Path) -> None:
    """Draws where each partition's edges lie on the schedule's log SNR; noise grows to the right,
    and edges beyond the schedule's bounds lie on the border.
    """
    figure, axes = new_figure("log SNR", "")
    bounds = np.array(schedule.bounds) - (0.0, 1.0 if schedule.coordinate == "timestep" else 0.0)
    low, high = np.sort(np.clip(log_snr(schedule, bounds), -14.0, 14.0))
    for row, clusters in enumerate(partitions):
        edges = np.minimum(clusters.edges, bounds[1])
        places = np.clip(log_snr(schedule, edges), low, high)
        axes.plot(places, np.full(len(places), row), "|-", markersize=18, markeredgewidth=1.5)
    axes.set_yticks(range(len(partitions)), [clusters.name for clusters in partitions])
    axes.set_ylim(len(partitions) - 0.5, -0.5)
    axes.set_xlim(high, low)
    save_figure(figure, path)


def new_figure(x_label: str, y_label: str, height: float = 4.4) -> tuple["Figure", "Axes"]:
    """Returns a figure 7.2 inches wide with one pair of axes, and the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a figure as path.png."""
    # Without the version of matplotlib, the same numbers give the same file.
    options = {"dpi": 130, "metadata": {"Software": None}}
    write_whole(Path(path).with_suffix(".png"), lambda file: figure.savefig(file, **options))


def _legend(axes: object) -> None:
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(frameon=False, fontsize=8, title="noise levels", title_fontsize=8, **beside)


def _colours(count: int) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.0, 0.9, count))

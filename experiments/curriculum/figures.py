"""The figures of the evidence, as PNG."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from analysis import Results, cluster_losses, curves, final_distances, paired_difference
from matplotlib import colormaps

from keras_cdiff.study.plots import new_figure, save_figure

HEIGHT = 4.8  # inches


def plan_figures(results: Results) -> list[tuple[str, str, Callable[[Path], None]]]:
    """Returns what can be drawn of a setting: (name of the file, what is on it, draws it)."""
    title, plan = results.setting.title, []
    # Controls and other weights are seen beside the first and a curriculum of its kind.
    known = results.curricula[:2]
    groups = {
        "curves": (results.curricula, "curricula"),
        "controls": ([*known, *results.controls] if results.controls else [], "controls"),
        "weights": ([*known, *results.weights] if results.weights else [], "other loss weights"),
    }
    for stem, (methods, words) in groups.items():
        if methods:
            alt = f"{title}: Fréchet distance against steps, {words}"
            plan.append((stem, alt, partial(plot_curves, results, methods)))
    # Those that have a seed in common with the first.
    others = [
        method
        for method in results.compared
        if method != results.first and {*results.runs[method]} & {*results.baseline}
    ]
    if others:
        against = results.titles[results.first]
        alt = f"{title}: difference to {against}, paired by seed"
        plan.append(("differences", alt, partial(plot_differences, results, others)))
    losses = [
        method
        for method in others
        if any(pair for _, pair in cluster_losses(results.runs[method], results.baseline))
    ]
    if losses:
        alt = f"{title}: validation loss by noise cluster, relative to {against}"
        plan.append(("clusters", alt, partial(plot_clusters, results, losses)))
    return [(f"{results.name}_{stem}.png", alt, draw) for stem, alt, draw in plan]


def plot_curves(results: Results, methods: Sequence[str], path: str | Path) -> None:
    """Draws the mean Frechet distance of methods against the step, with a band over their seeds."""
    figure, axes = new_figure("steps", "Frechet distance, mean and range over seeds", HEIGHT)
    for method, colour in zip(methods, _colours(results, methods), strict=True):
        steps, distances = curves(results.runs[method])
        label = f"{results.titles[method]} ({_seeds(len(distances))})"
        axes.plot(steps, distances.mean(axis=0), "o-", markersize=3, color=colour, label=label)
        band = (distances.min(axis=0), distances.max(axis=0))
        axes.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted("{x:.4g}")
    _legend(figure)
    save_figure(figure, path)


def plot_differences(results: Results, methods: Sequence[str], path: str | Path) -> None:
    """Draws the final Frechet distance of methods relative to the first, paired, with intervals."""
    first = results.titles[results.first]
    height = 1.4 + 0.36 * len(methods)
    figure, axes = new_figure(f"Frechet distance, % above that of {first}", "", height)
    expected, labels = final_distances(results.baseline), []
    for row, (method, colour) in enumerate(zip(methods, _colours(results, methods), strict=True)):
        distances = final_distances(results.runs[method])
        estimate = paired_difference(distances, expected, relative=True)
        if estimate.interval:
            axes.plot([100.0 * end for end in estimate.interval], [row, row], "|-", color=colour)
        axes.plot(100.0 * estimate.value, row, "o", color=colour)
        labels.append(f"{results.titles[method]} ({_seeds(estimate.seeds)})")
    axes.axvline(0.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    save_figure(figure, path)


def plot_clusters(results: Results, methods: Sequence[str], path: str | Path) -> None:
    """Draws the last validation loss by noise cluster, relative to the first method's."""
    first = results.titles[results.first]
    y_label = f"loss, % above that of {first}"
    figure, axes = new_figure("noise cluster, by ascending noise", y_label, HEIGHT)
    for number, (method, colour) in enumerate(
        zip(methods, _colours(results, methods), strict=True)
    ):
        estimates = [e for _, e in cluster_losses(results.runs[method], results.baseline)]
        shift = 0.6 * ((number + 0.5) / len(methods) - 0.5)  # so that intervals do not overlap
        for cluster, estimate in enumerate(estimates, 1):
            ends = estimate.interval or (estimate.value,) * 2
            axes.plot([cluster + shift] * 2, [100.0 * end for end in ends], "-", color=colour)
        places = [cluster + shift for cluster in range(1, len(estimates) + 1)]
        values = [100.0 * estimate.value for estimate in estimates]
        label = f"{results.titles[method]} ({_seeds(estimates[0].seeds)})"
        axes.plot(places, values, "o", color=colour, label=label)
    axes.axhline(0.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(1, len(estimates) + 1))
    _legend(figure)
    save_figure(figure, path)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _legend(figure: object) -> None:
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _colours(results: Results, methods: Sequence[str]) -> list:
    """Black for the first method, and for each other one colour in all figures of the setting."""
    order = [*results.curricula, *results.controls, *results.weights]
    order = [method for method in order if method != results.first]
    palette = colormaps["tab10"].colors
    return [
        "black" if m == results.first else palette[order.index(m) % len(palette)] for m in methods
    ]

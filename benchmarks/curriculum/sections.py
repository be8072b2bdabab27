"""The generated parts of docs/evidence.md, as Markdown."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from comparison import (
    COVERAGE,
    cluster_losses,
    last_improvement,
    mean_over_seeds,
    paired_difference,
    speed_up,
    steps_to_last,
)
from figures import plan_figures
from records import Results, curves, final_distances
from wording import number, pace_words, percent, table, verdict, with_interval

NOTHING = "Nothing has been measured yet."


def settings(all_results: Sequence[Results]) -> str:
    """Returns the table of settings: data, network, budget and numbers of images.

    Args:
        all_results: one of each setting.
    """
    rows = []
    for results in all_results:
        config = results.setting.preset
        backbone, record = config["model"]["backbone"], results.record
        network = [backbone["class_name"]]
        network += [f"{name} {backbone[name]}" for name in ("width", "depth") if name in backbone]
        network.append(f"{record['parameters']:,} parameters")
        size = backbone["image_size"]
        rows.append(
            (
                results.setting.title,
                f"{results.setting.data or config['data']}, {size} x {size}",
                ", ".join(network),
                f"{record['steps']:,}",
                str(record["batch_size"]),
                _range([len(runs) for runs in results.runs.values()] or [0]),
                f"{config['training']['learning_rate']:g}",
                f"{record['curve_samples']:,} a point, {record['final_samples']:,} at the end",
                f"{record['reference_images']:,}",
            )
        )
    head = "setting,data,network,steps,batch,seeds a method,learning rate,samples,reference images"
    return table(head.split(","), rows)


def tuning(all_results: Sequence[Results]) -> str:
    """Returns the table of learning rates that the first method was tuned by.

    Args:
        all_results: one of each setting.
    """
    rows, remarks = [], []
    for results in all_results:
        finite = {rate: d for rate, d in results.tuning.items() if math.isfinite(d)}
        if len(results.tuning) < 2 or not finite:
            continue
        best = min(finite, key=finite.get)
        used = results.setting.preset["training"]["learning_rate"]
        title = results.setting.title
        cells = (f"{rate:g}: {number(d)}" for rate, d in results.tuning.items())
        rows.append((title, ", ".join(cells), f"{best:g}", f"{used:g}"))
        if best != used:
            remarks.append(f"- {title}: the comparison uses {used:g}, not the best, {best:g}.")
        if best in (min(results.tuning), max(results.tuning)):
            remarks.append(f"- {title}: the best rate, {best:g}, is at the border of those tried.")
    if not rows:
        return "No second learning rate has been measured yet."
    head = ("setting", "final Fréchet distance by learning rate, seed 0", "best", "used")
    return "\n".join([table(head, rows), *([""] if remarks else []), *remarks])


def summary(all_results: Sequence[Results]) -> str:
    """Returns, for each setting, the distances of all methods and what the seeds can say of them.

    Args:
        all_results: one of each setting.
    """
    coverage = ", ".join(
        f"{share:.0%} with {n}".replace("%", " %") for n, share in COVERAGE.items()
    )
    parts = [
        "In brackets: 95 % percentile bootstrap intervals over seeds. Of so few seeds they are too "
        f"narrow: they hold the true mean of normal numbers in {coverage} seeds. Differences are "
        "paired: only seeds that both methods have, resampled together. Steps to it: those that a "
        "method takes to the last distance on the curve of the setting's first method, and the "
        "speed-up is the ratio of both; not reached means not within the budget. A method that is "
        "no better and no worse does not reach it in about half of all cases, for the last "
        "point tends to be the lowest. Minutes are steps times the time of a quiet step, which is "
        "the same for all methods of a setting. Full range: when the last stage began.",
    ]
    for results in all_results:
        first, runs, expected = results.first, results.runs, final_distances(results.baseline)
        rows = []
        for method in _compared(results):
            distances = final_distances(runs[method])
            kernel = mean_over_seeds(final_distances(runs[method], "kernel_distance"))
            difference = None if method == first else paired_difference(distances, expected, True)
            rows.append(
                (
                    _title(results, method),
                    f"{len(runs[method])} of {results.setting.methods.get(method, 0)}",
                    with_interval(mean_over_seeds(distances)),
                    with_interval(kernel),
                    with_interval(difference, percent),
                    *_pace(results, method),
                    _full_range(results, method),
                )
            )
        head = ("method", "seeds", "Fréchet distance", "kernel distance")
        against = ("difference to " + results.titles[first], "steps to it", "minutes", "speed-up")
        columns = (*head, *against, "full range at step")
        parts += ["", f"### {results.setting.title}", "", table(columns, rows), ""]
        parts += _missing(results)
        if results.baseline:
            parts.append(_flatness(results))
        parts.append("")
        for method, other in results.pairs:
            said = verdict(*(final_distances(runs[name]) for name in (method, other)))
            parts.append(f"- {results.titles[method]}, against {results.titles[other]}: {said}")
    return "\n".join(parts).strip()


def _pace(results: Results, method: str) -> tuple[str, str, str]:
    """Steps, minutes and speed-up to the first method's last distance."""
    runs, baseline = results.runs[method], results.baseline
    steps, minute = steps_to_last(runs, baseline), results.seconds_per_step / 60.0
    return (
        pace_words(steps, miss=math.inf),
        pace_words(steps, lambda value: number(value * minute), miss=math.inf),
        "" if method == results.first else pace_words(speed_up(runs, baseline)),
    )


def _title(results: Results, method: str) -> str:
    """The title of a method, with what a study has cost before."""
    runs = results.runs[method].values()
    extra = max(record.get("study_steps", 0) for record in runs)
    return results.titles[method] + (f" (found by {extra:,} steps of a study)" if extra else "")


def _full_range(results: Results, method: str) -> str:
    """The mean step at which the last stage was first logged."""
    runs = results.runs[method].values()
    curriculum = next(iter(runs)).get("curriculum")
    if not curriculum:
        return ""
    stages = curriculum["num_clusters"] + (curriculum["kind"] == "isolated")
    last = [record["stages"][-1] for record in runs]
    if min(stage["stage"] for stage in last) < stages:
        return f"never, ended in stage {min(stage['stage'] for stage in last)} of {stages}"
    return f"{sum(stage['step'] for stage in last) / len(last):,.0f}"


def grid(all_results: Sequence[Results]) -> str:
    """Returns, for each setting with a grid, its distances by number of clusters and patience.

    Args:
        all_results: one of each setting.
    """
    parts = []
    for results in all_results:
        if len(results.grid) < 2:
            continue
        runs = {method: results.runs[method] for method in results.grid}
        seeds = set.intersection(*(set(found) for found in runs.values()))
        if not seeds:
            parts += [f"### {results.setting.title}", "", "No seed of all cells yet.", ""]
            continue
        cells = {}
        for method, place in results.grid.items():
            found = {seed: runs[method][seed] for seed in sorted(seeds)}
            cells[place] = _grid_cell(found, results.baseline, _full_range(results, method))
        counts, patiences = (sorted({place[axis] for place in cells}) for axis in (0, 1))
        rows = [(f"N = {n}", *(cells.get((n, tau), "") for tau in patiences)) for n in counts]
        which = ", ".join(map(str, sorted(seeds)))
        parts += [f"### {results.setting.title}", ""]
        parts += [table(("", *(f"tau = {tau}" for tau in patiences)), rows), ""]
        parts += [
            f"Final Fréchet distance, difference to {results.titles[results.first]}, and the mean "
            "step at which the last stage was first logged (of all seeds). "
            f"Seeds that all cells have: {which}.",
            "",
        ]
    return "\n".join(parts).strip() or "No grid has been measured yet."


def clusters(all_results: Sequence[Results]) -> str:
    """Returns, for each setting, the last validation loss by noise cluster.

    Args:
        all_results: one of each setting.
    """
    parts = []
    for results in all_results:
        rows, left_out = [], []
        for method in _compared(results):
            estimates = cluster_losses(results.runs[method], results.baseline)
            if not estimates:
                left_out.append(results.titles[method])
                continue
            cells = [
                with_interval(mean)
                if method == results.first
                else f"{number(mean.value)}, {with_interval(difference, percent) or 'no pair'}"
                for mean, difference in estimates
            ]
            rows.append((results.titles[method], str(estimates[0][0].seeds), *cells))
        if not rows:
            continue
        edges = [float(edge) for edge in next(iter(results.baseline.values()))["cluster_edges"]]
        ends = [f"{float(f'{edge:.3g}'):g}" for edge in edges]
        head = [f"[{low}, {high})" for low, high in pairwise(ends)]
        parts += [f"### {results.setting.title}", "", table(("method", "seeds", *head), rows), ""]
        if left_out:
            words = "; ".join(left_out)
            parts += [f"Left out, since losses of other weights or clusters differ: {words}.", ""]
    if not parts:
        return NOTHING
    first = (
        "Last validation loss of each noise cluster, mean over seeds, and its difference to the "
        "first method's, paired by seed. It is that of the averaged weights on held-out images."
    )
    return "\n".join([first, "", *parts]).strip()


def figures(all_results: Sequence[Results], folder: str) -> str:
    """Returns the links to all figures.

    Args:
        all_results: one of each setting.
        folder: of the figures, beside the page.
    """
    plan = [figure for results in all_results for figure in plan_figures(results)]
    return "\n\n".join(f"![{alt}]({folder}/{name})" for name, alt, _ in plan) or NOTHING


def time(records: Sequence[dict]) -> str:
    """Returns how long all runs took, and with what they were made.

    Args:
        records: all runs of the size.
    """
    steps = sum(record["steps"] * record["seconds_per_step"] for record in records)
    lines = [
        f"- {len(records)} runs: {number(steps / 3600.0)} hours of training, as steps times "
        "the time of a quiet step of each run."
    ]
    for name, words in (
        (
            "training_seconds",
            "from the first to the last log of each run, with the samples of its curve, pauses and "
            "whatever else the machine did",
        ),
        ("measuring_seconds", "measuring the samples"),
    ):
        known = [record[name] for record in records if record.get(name) is not None]
        if known:
            hours = number(sum(known) / 3600.0)
            lines.append(f"- {hours} hours {words}; {len(known)} of {len(records)} runs say so.")
    for name, words in (
        ("trained_by", "Backend of the training"),
        ("measured_by", "Backend of the measuring"),
        ("extractor", "Features of the distances"),
        ("keras_cdiff", "Version of keras_cdiff"),
    ):
        known = sorted({_words(record[name]) for record in records})
        lines.append(f"- {words}: {', '.join(known)}.")
    return "\n".join(lines)


def _words(value: str | dict) -> str:
    """A name, or an extractor: its name, the size of what it sees, and its version."""
    if isinstance(value, str):
        return value
    size = value["image_size"]
    seen = f" of {size[0]} x {size[1]} pixels, resized by {value['resize']}" if size else ""
    return f"{value['name']}{seen} ({value['version']})"


def _compared(results: Results) -> list[str]:
    """All methods but those that only fill the grid."""
    groups = (*results.curricula, *results.controls, *results.weights)
    return [method for method in groups if method in results.runs]


def _missing(results: Results) -> list[str]:
    names = [m for m in results.setting.methods if m not in results.runs]
    titles = "; ".join(results.titles[name] for name in names)
    return [f"Not measured yet: {titles}.", ""] if names else []


def _flatness(results: Results) -> str:
    steps, _ = curves(results.baseline)
    change = percent(-last_improvement(results.baseline))
    return (
        f"Over the last fifth of the {steps[-1]:,.0f} steps the mean curve of "
        f"{results.titles[results.first]} changed by {change}: what is near 0 % has flattened."
    )


def _grid_cell(runs: Mapping[int, dict], baseline: Mapping[int, dict], full_range: str) -> str:
    distances = final_distances(runs)
    mean = mean_over_seeds(distances).value
    difference = paired_difference(distances, final_distances(baseline), relative=True)
    cells = [number(mean), *([percent(difference.value)] if difference else [])]
    return ", ".join([*cells, full_range])


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"

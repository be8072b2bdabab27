"""The generated parts of docs/evidence.md but for the summary, as Markdown."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from comparison import cluster_losses, mean_over_seeds, paired_difference
from figures import plan_figures
from records import Results, final_distances
from summary import compared, full_range
from wording import number, percent, table, with_interval

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
    """Returns the table of learning rates that were tried.

    Args:
        all_results: one of each setting.
    """
    rows, remarks = [], []
    for results in all_results:
        used = results.setting.preset["training"]["learning_rate"]
        for method, distances in results.tuning.items():
            finite = {rate: d for rate, d in distances.items() if math.isfinite(d)}
            if not finite:
                continue
            best = min(finite, key=finite.get)
            title = (results.setting.title, results.titles[method])
            cells = (f"{rate:g}: {number(d)}" for rate, d in distances.items())
            rows.append((*title, ", ".join(cells), f"{best:g}", f"{used:g}"))
            remark = f"- {title[0]}, {title[1]}: the"
            if best != used:
                remarks.append(f"{remark} comparison uses {used:g}, not the best, {best:g}.")
            if best in (min(distances), max(distances)):
                remarks.append(f"{remark} best rate, {best:g}, is at the border of those tried.")
    if not rows:
        return "No second learning rate has been measured yet."
    head = ("setting", "method", "final Fréchet distance by learning rate, seed 0", "best", "used")
    return "\n".join([table(head, rows), *([""] if remarks else []), *remarks])


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
            cells[place] = _grid_cell(found, results.baseline, full_range(results, method))
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
        for method in compared(results):
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


def _grid_cell(runs: Mapping[int, dict], baseline: Mapping[int, dict], full_range: str) -> str:
    distances = final_distances(runs)
    mean = mean_over_seeds(distances).value
    difference = paired_difference(distances, final_distances(baseline), relative=True)
    cells = [number(mean), *([percent(difference.value)] if difference else [])]
    return ", ".join([*cells, full_range])


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"

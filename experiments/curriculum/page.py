"""The generated parts of docs/evidence.md, as Markdown: numbers in words, tables, sections."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from analysis import (
    COVERAGE,
    DIVERGED,
    Estimate,
    Results,
    cluster_losses,
    curves,
    diverged,
    final_distances,
    last_improvement,
    mean_over_seeds,
    one_sidedness,
    paired_difference,
    speed_up,
    steps_to_last,
)
from figures import plan_figures

NOTHING = "Nothing has been measured yet."


def number(value: float) -> str:
    """Returns a number to three significant digits."""
    if not math.isfinite(value):
        return "not finite"
    rounded = float(f"{value:.2e}")
    if rounded == 0.0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(rounded)))
    if decimals > 6:
        return f"{rounded:.2e}"
    return f"{rounded:,.{max(decimals, 0)}f}"


def percent(value: float) -> str:
    """Returns a share as a percentage with its sign."""
    if not math.isfinite(value):
        return "not finite"
    text = number(100.0 * value)
    return f"{text if value <= 0.0 else '+' + text} %"


def with_interval(estimate: Estimate | None, words: Callable[[float], str] = number) -> str:
    """Returns an estimate with its interval, or that it is of one seed."""
    if estimate is None:
        return ""
    if estimate.interval is None:
        return f"{words(estimate.value)} (1 seed)"
    low, high = (words(end).removesuffix(" %") for end in estimate.interval)
    return f"{words(estimate.value)} [{low} to {high}]"


def pace_words(
    estimate: Estimate | None, words: Callable[[float], str] = number, miss: float = 0.0
) -> str:
    """Returns steps, time or a speed-up to a target that may not have been reached."""
    if estimate is None:
        return ""
    missed = f"{number(100.0 * estimate.missed)} % of resamples" if estimate.missed else ""
    if estimate.value == miss:
        return f"not reached ({missed or '1 seed'})"
    text = with_interval(estimate, lambda v: "not reached" if v == miss else words(v))
    return f"{text}, not reached in {missed}" if missed else text


def verdict(values: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[str, str, str]:
    """Returns what the seeds can say of a difference of distances: the difference, in how many
    seeds it has which sign, and how often chance is as one-sided.
    """
    estimate = paired_difference(values, baseline, relative=True)
    if estimate is None:
        return "no seed in common", "", ""
    if not math.isfinite(estimate.value):
        return "a distance is not finite", "", ""
    difference = with_interval(estimate, percent)
    if estimate.interval is None:
        return percent(estimate.value), "1 seed, no verdict", ""
    lower, higher, chance = one_sidedness(values, baseline)
    if max(lower, higher) < estimate.seeds:
        words = f"lower in {lower} and higher in {higher} of {estimate.seeds}"
    else:
        words = f"{'lower' if lower else 'higher'} in all {estimate.seeds}"
    return difference, words, f"{100.0 * chance:.0f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(all_results: Sequence[Results]) -> str:
    """Returns, for each setting, the distances of all methods and what the seeds say of them."""
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
        "the same for all methods of a setting. Full range: the mean step at which the last stage "
        "was first logged. Chance: how often seeds without any difference are as one-sided or more "
        "(sign test).",
    ]
    for results in all_results:
        first, runs, expected = results.first, results.runs, final_distances(results.baseline)
        rows = []
        for method in results.compared:
            distances = final_distances(runs[method])
            kernel = mean_over_seeds(final_distances(runs[method], "kernel_distance"))
            difference = None if method == first else paired_difference(distances, expected, True)
            seeds = f"{len(runs[method])} of {results.setting.methods.get(method, 0)}"
            means = (with_interval(mean_over_seeds(distances)), with_interval(kernel))
            cells = (_title(results, method), seeds, *means, with_interval(difference, percent))
            rows.append((*cells, *_pace(results, method), full_range(results, method)))
        head = ("method", "seeds", "Fréchet distance", "kernel distance")
        against = ("difference to " + results.titles[first], "steps to it", "minutes", "speed-up")
        columns = (*head, *against, "full range at step")
        parts += [f"### {results.setting.title}", table(columns, rows), *_remarks(results)]
        pairs = [
            (
                *(results.titles[name] for name in pair),
                *verdict(*(final_distances(runs[name]) for name in pair)),
            )
            for pair in results.pairs
        ]
        if pairs:
            parts.append(table(("method", "compared with", "difference", "seeds", "chance"), pairs))
    return "\n\n".join(parts)


def full_range(results: Results, method: str) -> str:
    """Returns the mean step at which the last stage was first logged, in words."""
    runs = results.runs[method].values()
    curriculum = next(iter(runs)).get("curriculum")
    if not curriculum:
        return ""
    stages = curriculum["num_clusters"] + (curriculum["kind"] == "isolated")
    last = [record["stages"][-1] for record in runs]
    if min(stage["stage"] for stage in last) < stages:
        return f"never, ended in stage {min(stage['stage'] for stage in last)} of {stages}"
    return f"{sum(stage['step'] for stage in last) / len(last):,.0f}"


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


def _remarks(results: Results) -> list[str]:
    """What is missing, how flat the first method's curve is, and which runs diverged."""
    missing = [results.titles[m] for m in results.setting.methods if m not in results.runs]
    parts = [f"Not measured yet: {'; '.join(missing)}."] if missing else []
    if results.baseline:
        steps, _ = curves(results.baseline)
        change = percent(-last_improvement(results.baseline))
        parts.append(
            f"Over the last fifth of the {steps[-1]:,.0f} steps the mean curve of "
            f"{results.titles[results.first]} changed by {change}: what is near 0 % has flattened."
        )
    names = [
        f"{results.titles[method]}, seed {seed}"
        for method in results.compared
        for seed, record in results.runs[method].items()
        if diverged(record)
    ]
    if names:
        rule = f"their validation loss ended at more than {DIVERGED:g} times its lowest"
        parts.append(f"Diverged, but part of all numbers: {'; '.join(names)} ({rule}).")
    return parts


def settings(all_results: Sequence[Results]) -> str:
    """Returns the table of settings: data, network, budget and numbers of images."""
    rows = []
    for results in all_results:
        config = results.setting.preset
        backbone, record = config["model"]["backbone"], results.record
        network = [backbone["class_name"]]
        network += [f"{name} {backbone[name]}" for name in ("width", "depth") if name in backbone]
        network.append(f"{record['parameters']:,} parameters")
        size = backbone["image_size"]
        seeds = {len(runs) for runs in results.runs.values()} or {0}
        rows.append(
            (
                results.setting.title,
                f"{results.setting.data or config['data']}, {size} x {size}",
                ", ".join(network),
                f"{record['steps']:,}",
                str(record["batch_size"]),
                " to ".join(map(str, sorted({min(seeds), max(seeds)}))),
                f"{config['training']['learning_rate']:g}",
                f"{record['curve_samples']:,} a point, {record['final_samples']:,} at the end",
                f"{record['reference_images']:,}",
            )
        )
    head = "setting,data,network,steps,batch,seeds a method,learning rate,samples,reference images"
    return table(head.split(","), rows)


def tuning(all_results: Sequence[Results]) -> str:
    """Returns the table of learning rates that were tried."""
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
    """Returns, for each setting with a grid, its distances by number of clusters and patience."""
    parts = []
    for results in all_results:
        if len(results.grid) < 2:
            continue
        runs = {method: results.runs[method] for method in results.grid}
        seeds = set.intersection(*(set(found) for found in runs.values()))
        if not seeds:
            parts += [f"### {results.setting.title}", "No seed of all cells yet."]
            continue
        cells = {}
        for method, place in results.grid.items():
            found = {seed: runs[method][seed] for seed in sorted(seeds)}
            cells[place] = _grid_cell(found, results.baseline, full_range(results, method))
        counts, patiences = (sorted({place[axis] for place in cells}) for axis in (0, 1))
        rows = [(f"N = {n}", *(cells.get((n, tau), "") for tau in patiences)) for n in counts]
        which = ", ".join(map(str, sorted(seeds)))
        parts += [
            f"### {results.setting.title}",
            table(("", *(f"tau = {tau}" for tau in patiences)), rows),
            f"Final Fréchet distance, difference to {results.titles[results.first]}, and the mean "
            "step at which the last stage was first logged (of all seeds). "
            f"Seeds that all cells have: {which}.",
        ]
    return "\n\n".join(parts) or "No grid has been measured yet."


def clusters(all_results: Sequence[Results]) -> str:
    """Returns, for each setting, the last validation loss by noise cluster."""
    parts = []
    for results in all_results:
        rows, left_out = [], []
        for method in results.compared:
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
        parts += [f"### {results.setting.title}", table(("method", "seeds", *head), rows)]
        if left_out:
            words = "; ".join(left_out)
            parts.append(f"Left out, since losses of other weights or clusters differ: {words}.")
    if not parts:
        return NOTHING
    first = (
        "Last validation loss of each noise cluster, mean over seeds, and its difference to the "
        "first method's, paired by seed. It is that of the averaged weights on held-out images."
    )
    return "\n\n".join([first, *parts])


def figures(all_results: Sequence[Results], folder: str) -> str:
    """Returns the links to all figures."""
    plan = [figure for results in all_results for figure in plan_figures(results)]
    return "\n\n".join(f"![{alt}]({folder}/{name})" for name, alt, _ in plan) or NOTHING


def time(records: Sequence[dict]) -> str:
    """Returns how long all runs took, and with what they were made."""
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


def generate(records: Sequence[dict], results: Sequence[Results], folder: str) -> dict[str, str]:
    """Returns the text of each section by its name, with links to figures in a folder."""
    return {
        "summary": summary(results),
        "figures": figures(results, folder),
        "grid": grid(results),
        "clusters": clusters(results),
        "settings": settings(results),
        "tuning": tuning(results),
        "time": time(records),
    }

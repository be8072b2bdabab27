"""The section that compares the methods of each setting, as Markdown."""

import math
from collections.abc import Sequence

from comparison import (
    COVERAGE,
    last_improvement,
    mean_over_seeds,
    paired_difference,
    speed_up,
    steps_to_last,
)
from records import DIVERGED, Results, curves, diverged, final_distances
from wording import number, pace_words, percent, table, verdict, with_interval


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
        "the same for all methods of a setting. Full range: the mean step at which the last stage "
        "was first logged. Chance: how often seeds without any difference are as one-sided or more "
        "(sign test).",
    ]
    for results in all_results:
        first, runs, expected = results.first, results.runs, final_distances(results.baseline)
        rows = []
        for method in compared(results):
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
                    full_range(results, method),
                )
            )
        head = ("method", "seeds", "Fréchet distance", "kernel distance")
        against = ("difference to " + results.titles[first], "steps to it", "minutes", "speed-up")
        columns = (*head, *against, "full range at step")
        parts += ["", f"### {results.setting.title}", "", table(columns, rows), ""]
        parts += _missing(results)
        if results.baseline:
            parts.append(_flatness(results))
        parts += ["", *_diverged(results)]
        pairs = [
            (
                *(results.titles[name] for name in pair),
                *verdict(*(final_distances(runs[name]) for name in pair)),
            )
            for pair in results.pairs
        ]
        if pairs:
            parts.append(table(("method", "compared with", "difference", "seeds", "chance"), pairs))
    return "\n".join(parts).strip()


def compared(results: Results) -> list[str]:
    """Returns all methods but those that only fill the grid.

    Args:
        results: of a setting.
    """
    groups = (*results.curricula, *results.controls, *results.weights)
    return [method for method in groups if method in results.runs]


def full_range(results: Results, method: str) -> str:
    """Returns the mean step at which the last stage was first logged, in words.

    Args:
        results: of a setting.
        method: which.
    """
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


def _missing(results: Results) -> list[str]:
    names = [m for m in results.setting.methods if m not in results.runs]
    titles = "; ".join(results.titles[name] for name in names)
    return [f"Not measured yet: {titles}.", ""] if names else []


def _diverged(results: Results) -> list[str]:
    names = [
        f"{results.titles[method]}, seed {seed}"
        for method in compared(results)
        for seed, record in results.runs[method].items()
        if diverged(record)
    ]
    if not names:
        return []
    rule = f"their validation loss ended at more than {DIVERGED:g} times its lowest"
    return [f"Diverged, but part of all numbers: {'; '.join(names)} ({rule}).", ""]


def _flatness(results: Results) -> str:
    steps, _ = curves(results.baseline)
    change = percent(-last_improvement(results.baseline))
    return (
        f"Over the last fifth of the {steps[-1]:,.0f} steps the mean curve of "
        f"{results.titles[results.first]} changed by {change}: what is near 0 % has flattened."
    )

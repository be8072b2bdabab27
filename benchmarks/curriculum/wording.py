"""Numbers, intervals, verdicts and tables in words."""

import math
from collections.abc import Callable, Mapping, Sequence

from comparison import Estimate, one_sidedness, paired_difference


def number(value: float) -> str:
    """Returns a number to three significant digits.

    Args:
        value: the number.
    """
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
    """Returns a share as a percentage with its sign.

    Args:
        value: the share.
    """
    if not math.isfinite(value):
        return "not finite"
    text = number(100.0 * value)
    return f"{text if value <= 0.0 else '+' + text} %"


def with_interval(estimate: Estimate | None, words: Callable[[float], str] = number) -> str:
    """Returns an estimate with its interval, or that it is of one seed.

    Args:
        estimate: None gives an empty text.
        words: a function: number -> text.
    """
    if estimate is None:
        return ""
    if estimate.interval is None:
        return f"{words(estimate.value)} (1 seed)"
    low, high = (words(end).removesuffix(" %") for end in estimate.interval)
    return f"{words(estimate.value)} [{low} to {high}]"


def pace_words(
    estimate: Estimate | None, words: Callable[[float], str] = number, miss: float = 0.0
) -> str:
    """Returns steps, time or a speed-up to a target that may not have been reached.

    Args:
        estimate: as `steps_to_last` or `speed_up` gives it.
        words: a function: number -> text.
        miss: stands for a target that was not reached.
    """
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

    Args:
        values: by seed.
        baseline: by seed.
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
    """Returns a table in Markdown.

    Args:
        head: its first row.
        rows: all others, as long.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

"""The page of a study: what was found, in words, with the figures and one table."""

from collections.abc import Sequence

import numpy as np

from keras_cdiff.study.curves import (
    ExpertCurves,
    converged,
    iterations_to_reach,
    normalised,
    rank_correlation,
)
from keras_cdiff.study.relative_entropy import EntropyCurve

# A rank correlation at least this strong is called a trend; less than this factor between the
# highest and the lowest value is called flat.
TREND = 0.7
FLAT = 1.5
# An expert that fell by more than this share of its drop in its last fifth is still falling.
STILL_FALLING = 0.03
# A reference whose distance is not below this share of an untrained expert's is no measure.
POOR = 0.9


def report_page(
    config: dict,
    entropies: Sequence[EntropyCurve],
    experts: Sequence[ExpertCurves] = (),
    conditions: Sequence[str] = (),
) -> str:
    """Returns the page of `write_report` as Markdown."""
    blocks = [
        f"# Which denoising tasks are hard: {config['preset']} on {config['data']}",
        "The question: is denoising harder at little noise, so that a curriculum should begin with "
        "much? Each measure answers for itself.",
    ]
    for curve in entropies:
        blocks += [f"## Relative entropy along {curve.name}", " ".join(entropy_findings(curve))]
        blocks += [f"![Relative entropy](relative_entropy_{curve.name}.png)"]
    if experts:
        blocks += ["## Convergence of the loss", " ".join(loss_findings(experts))]
        blocks += ["![Iterations to converge](iterations.png)", "![Losses](losses.png)"]
        if quality := quality_findings(experts):
            blocks += ["## Quality of denoised images", " ".join(quality)]
            blocks += ["![Qualities](qualities.png)"]
        blocks.append(_table(experts))
    conditions = [*conditions, "Every number is in the .csv files beside this page."]
    blocks += [
        "## Clusters",
        "Edges of partitions of the noise range; those of equal difficulty are in "
        "`clusters_*.json`, for `apps/train.py --clusters`.",
        "![Clusters](clusters.png)",
        "## How it was measured",
        "\n".join(f"- {sentence}" for sentence in conditions),
    ]
    return "\n\n".join(blocks) + "\n"


def _table(experts: Sequence[ExpertCurves]) -> str:
    rows = [
        "| expert | noise levels | loss before | converged | to 50% | to 90% | distance before "
        "| at the end | of the reference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in experts:
        cells = [str(e.number), e.span, f"{e.loss[0]:.3f}", f"{converged(e.loss):.3f}"]
        cells += [f"{iterations_to_reach(e.steps, e.loss, share):.0f}" for share in (0.5, 0.9)]
        cells += [f"{e.quality[i]:.1f}" if e.quality else "" for i in (0, -1)]
        cells += ["" if e.floor is None else f"{e.floor:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def trend(noise: Sequence[float], difficulty: Sequence[float]) -> str:
    """Returns how difficulty goes with noise: "falls", "rises", "flat", "peaks", "valley" or
    "unclear"; "unknown" for fewer than three values.

    "peaks": highest away from both ends, and more than `FLAT` times as high as there. Otherwise it
    falls or rises if the rank correlation is at least `TREND`. "valley": neither, and lowest away
    from both ends, more than `FLAT` times lower than there.

    Args:
        noise: (K,) ascending.
        difficulty: (K,) >= 0; NaN where it is not known.
    """
    difficulty = np.asarray(difficulty, dtype=np.float64)
    known = np.isfinite(difficulty)
    noise, difficulty = np.asarray(noise)[known], difficulty[known]
    if len(difficulty) < 3:
        return "unknown"
    if difficulty.max() < FLAT * difficulty.min():
        return "flat"
    inner, ends = difficulty[1:-1], difficulty[[0, -1]]
    if inner.max() > FLAT * ends.max():
        return "peaks"
    correlation = rank_correlation(noise, difficulty)
    if abs(correlation) >= TREND:
        return "falls" if correlation < 0.0 else "rises"
    return "valley" if FLAT * inner.min() < ends.min() else "unclear"


_SENTENCES = {
    "falls": "By this measure difficulty falls with noise, as the paper says.",
    "rises": "By this measure difficulty rises with noise, against the paper.",
    "flat": "By this measure difficulty hardly depends on noise, against the paper.",
    "peaks": "By this measure neither end is hardest: difficulty has its peak between, against the "
    "paper.",
    "valley": "By this measure both ends are hard: difficulty falls with noise at first and rises "
    "towards its end, so the paper's order holds in part.",
    "unknown": "Too few intervals were measured to say how difficulty goes with noise.",
    "unclear": "By this measure difficulty neither falls nor rises consistently with noise.",
}


def entropy_findings(curve: EntropyCurve) -> list[str]:
    """Returns sentences on the relative entropy along a schedule."""
    found = trend(curve.levels, curve.estimate)
    top = int(np.argmax(curve.estimate))
    first, last = curve.estimate[[0, -1]]
    coordinate = curve.schedule.coordinate
    unit = "nats" if curve.discrete else "nats per squared unit of log SNR"
    rate, discrete = "rate of relative entropy", "relative entropy between consecutive timesteps"
    what = f"The {discrete if curve.discrete else rate}"
    sentences = [
        f"{what} is {first:.3g} {unit} for the whole image at {coordinate} {curve.levels[0]:.3g}, "
        f"and {last:.3g} at {curve.levels[-1]:.3g}."
    ]
    if found == "falls":
        falling = int(np.sum(np.diff(curve.estimate) < 0.0))
        sentences.append(f"It falls at {falling} of {len(curve.levels) - 1} steps between levels.")
    elif found == "flat":
        share = curve.estimate.max() / curve.estimate.min() - 1.0
        sentences.append(f"Its highest and its lowest value differ by {share:.1%}.")
    else:
        sentences.append(
            f"It is highest at {coordinate} {curve.levels[top]:.3g}, with {curve.estimate[top]:.3g}"
            f" +- {curve.error[top]:.1g}."
        )
    sentences.append(_SENTENCES[found])
    if not curve.discrete:
        # The relative entropy of two levels depends on what one calls an equal step.
        other = trend(curve.levels, curve.per_level)
        first, last = curve.per_level[[0, -1]]
        says = {"falls": "it falls", "rises": "it rises", "flat": "it hardly changes"}
        sentences.append(
            f"Between levels a small, equal step of {coordinate} apart, instead of log SNR, "
            f"{says.get(other, 'it neither falls nor rises consistently')}: from {first:.3g} to "
            f"{last:.3g} nats per squared unit of {coordinate}."
        )
    return sentences


def loss_findings(
    experts: Sequence[ExpertCurves], fractions: Sequence[float] = (0.5, 0.9)
) -> list[str]:
    """Returns sentences on how fast the experts' losses converged."""
    numbers, sentences = [expert.number for expert in experts], []
    lost = [expert.number for expert in experts if np.isnan(normalised(expert.loss)[0])]
    if lost:
        sentences.append(f"The loss of expert {_list(lost)} did not fall.")
    for fraction in fractions:
        needed = np.array([iterations_to_reach(e.steps, e.loss, fraction) for e in experts])
        if not np.any(np.isfinite(needed)):
            continue
        shown = _list(["unknown" if np.isnan(n) else f"{n:.0f}" for n in needed])
        sentences.append(
            f"To {fraction:.0%} of the drop of their loss the experts took {shown} iterations, by "
            "ascending noise."
        )
        ratio, correlation = needed[0] / needed[-1], rank_correlation(numbers, needed)
        if np.nanmax(needed) > np.nanmin(needed):
            slowest, fastest = experts[np.nanargmax(needed)], experts[np.nanargmin(needed)]
            sentences.append(f"Slowest was {_named(slowest)}, fastest {_named(fastest)}.")
        if np.isfinite(ratio) and len(experts) > 1:
            sentences.append(f"The first took {ratio:.1f} times as long as the last.")
        if np.isfinite(correlation):
            sentences.append(f"Spearman's rank correlation with noise is {correlation:.2f}.")
        sentences.append(_SENTENCES[trend(numbers, needed)])
    falling = [expert.number for expert in experts if _still_falling(expert)]
    if falling:
        sentences.append(
            f"Expert {_list(falling)} had not converged: in the last fifth the loss fell by more "
            f"than {STILL_FALLING:.0%} of its drop, so convergence takes longer than stated."
        )
    return sentences


def quality_findings(experts: Sequence[ExpertCurves]) -> list[str]:
    """Returns sentences on how fast the experts' images became good."""
    if any(len(expert.quality) < 2 for expert in experts):
        return []
    # What is left, of the way from the untrained network to the reference.
    left = [
        (e.quality[-1] - e.floor) / (e.quality[0] - e.floor)
        if e.floor < POOR * e.quality[0]
        else np.nan
        for e in experts
    ]
    if np.all(np.isnan(left)):
        return ["The reference is hardly better than untrained experts: train it longer."]
    shown = _list(["unknown" if np.isnan(x) else f"{x:.1%}" for x in left])
    correlation = rank_correlation([e.number for e in experts], left)
    sentences = [
        "At the end the distance between real images and what became of them, less that of the "
        f"reference, was {shown} of what it was before training, by ascending noise.",
        f"The least is left of {_named(experts[int(np.nanargmin(left))])}.",
    ]
    if np.isfinite(correlation):
        sentences.append(f"Spearman's rank correlation with noise is {correlation:.2f}.")
    found = trend([e.number for e in experts], np.maximum(left, 0.0))
    return [*sentences, _SENTENCES[found]]


def _still_falling(expert: ExpertCurves) -> bool:
    height = normalised(expert.loss)
    if len(height) < 10:
        return False  # too few values to tell
    fifth = len(height) // 5
    return bool(np.mean(height[-2 * fifth : -fifth]) - np.mean(height[-fifth:]) > STILL_FALLING)


def _named(expert: ExpertCurves) -> str:
    return f"expert {expert.number} on {expert.span}"


def _list(items: Sequence[object]) -> str:
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"

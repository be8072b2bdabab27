"""What a study found, in words: does difficulty fall with noise?"""

from collections.abc import Sequence

import numpy as np

from keras_cdiff.study.convergence import ExpertCurves
from keras_cdiff.study.curves import iterations_to_reach, normalised, rank_correlation
from keras_cdiff.study.entropy_curve import EntropyCurve

# A rank correlation at least this strong is called a trend; less than this factor between the
# highest and the lowest value is called flat.
TREND = 0.8
FLAT = 1.5
# An expert that fell by more than this share of its drop in its last fifth is still falling.
STILL_FALLING = 0.03


def trend(noise: Sequence[float], difficulty: Sequence[float]) -> str:
    """Returns how difficulty goes with noise: "falls", "rises", "flat", "peaks", "valley" or
    "unclear".

    "peaks": highest away from both ends, and more than `FLAT` times as high as there; "valley":
    falling with noise down to its lowest value and rising from there on, each with hardly an
    exception.

    Args:
        noise: (K,) ascending.
        difficulty: (K,) >= 0; NaN where it is not known.
    """
    difficulty = np.asarray(difficulty, dtype=np.float64)
    known = np.isfinite(difficulty)
    noise, difficulty = np.asarray(noise)[known], difficulty[known]
    if len(difficulty) < 3:
        return "unclear"
    if difficulty.max() < FLAT * difficulty.min():
        return "flat"
    correlation = rank_correlation(noise, difficulty)
    if abs(correlation) >= TREND:
        return "falls" if correlation < 0.0 else "rises"
    top = int(np.argmax(difficulty))
    inner = 0 < top < len(difficulty) - 1
    if inner and difficulty[top] > FLAT * max(difficulty[0], difficulty[-1]):
        return "peaks"
    bottom = int(np.argmin(difficulty))
    sides = (noise[: bottom + 1], difficulty[: bottom + 1]), (noise[bottom:], difficulty[bottom:])
    down, up = (rank_correlation(*side) for side in sides)
    return "valley" if down <= -TREND and up >= TREND else "unclear"


_SENTENCES = {
    "falls": "By this measure difficulty falls with noise, as the paper says.",
    "rises": "By this measure difficulty rises with noise, against the paper.",
    "flat": "By this measure difficulty hardly depends on noise, against the paper.",
    "peaks": "By this measure neither end is hardest: difficulty has its peak between, against the "
    "paper.",
    "valley": "By this measure both ends are hard: difficulty falls with noise at first and rises "
    "towards its end, so the paper's order holds in part.",
    "unclear": "By this measure difficulty neither falls nor rises consistently with noise.",
}


def entropy_findings(curve: EntropyCurve) -> list[str]:
    """Returns sentences on the relative entropy along a schedule."""
    found = trend(curve.levels, curve.estimate)
    top = int(np.argmax(curve.estimate))
    first, last = curve.estimate[[0, -1]]
    coordinate = curve.schedule.coordinate
    unit = "nats" if curve.discrete else "nats per squared unit of log SNR"
    what = (
        "The relative entropy between consecutive timesteps"
        if curve.discrete
        else "The rate of relative entropy"
    )
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
        if np.sum(np.isfinite(needed)) < 2:
            continue
        hardest, easiest = experts[np.nanargmax(needed)], experts[np.nanargmin(needed)]
        ratio = needed[0] / needed[-1]
        compared = (
            "" if np.isnan(ratio) else f"the first took {ratio:.1f} times as long as the last, "
        )
        sentences += [
            f"To {fraction:.0%} of the drop of their loss the experts took "
            f"{_list([_whole(n) for n in needed])} iterations, by ascending noise.",
            f"Slowest was {_interval(hardest)}, fastest {_interval(easiest)}; {compared}and "
            f"Spearman's rank correlation with noise is {rank_correlation(numbers, needed):.2f}.",
            _SENTENCES[trend(numbers, needed)],
        ]
    falling = [expert.number for expert in experts if _still_falling(expert)]
    if falling:
        sentences.append(
            f"Expert {_list(falling)} had not converged: in its last fifth its loss fell by more "
            f"than {STILL_FALLING:.0%} of its drop, so it takes longer than stated."
        )
    return sentences


def quality_findings(experts: Sequence[ExpertCurves]) -> list[str]:
    """Returns sentences on how fast the experts' images became good."""
    if any(len(expert.quality) < 2 for expert in experts):
        return []
    # What is left, of the way from the untrained network to the reference.
    left = [
        (e.quality[-1] - e.floor) / (e.quality[0] - e.floor) if e.quality[0] > e.floor else np.nan
        for e in experts
    ]
    if np.all(np.isnan(left)):
        return []
    shown = _list(["unknown" if np.isnan(x) else f"{x:.1%}" for x in left])
    return [
        "At the end the distance between real images and what became of them, less that of the "
        f"reference, was {shown} of what it was before training, by ascending noise.",
        f"The least is left of {_interval(experts[int(np.nanargmin(left))])}, and Spearman's rank "
        f"correlation with noise is {rank_correlation([e.number for e in experts], left):.2f}.",
        _SENTENCES[trend([e.number for e in experts], np.maximum(left, 0.0))],
    ]


def _still_falling(expert: ExpertCurves) -> bool:
    height = normalised(expert.loss)
    if len(height) < 10:
        return True
    fifth = len(height) // 5
    return bool(np.mean(height[-2 * fifth : -fifth]) - np.mean(height[-fifth:]) > STILL_FALLING)


def _interval(expert: ExpertCurves) -> str:
    low, high = expert.interval
    return f"expert {expert.number} on [{low:.3g}, {high:.3g})"


def _whole(number: float) -> str:
    return "unknown" if np.isnan(number) else f"{number:.0f}"


def _list(items: Sequence[object]) -> str:
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"

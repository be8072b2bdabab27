"""The page of a study's report: what was found, in words, with the figures and one table."""

from collections.abc import Sequence

from keras_cdiff.study.curves import converged, iterations_to_reach
from keras_cdiff.study.entropy_curve import EntropyCurve
from keras_cdiff.study.expert_curves import ExpertCurves
from keras_cdiff.study.findings import entropy_findings, loss_findings, quality_findings


def report_page(
    config: dict,
    entropies: Sequence[EntropyCurve],
    experts: Sequence[ExpertCurves] = (),
    conditions: Sequence[str] = (),
) -> str:
    """Returns the page as Markdown.

    Args:
        config: the resolved configuration that was studied.
        entropies: relative entropies along schedules.
        experts: what was measured of the experts, if there are any.
        conditions: sentences on how it was measured.
    """
    parts = [f"# Which denoising tasks are hard: {config['preset']} on {config['data']}", ""]
    parts += [
        "The question: is denoising harder at little noise, so that a curriculum should begin with "
        "much? Each measure answers for itself.",
        "",
    ]
    for curve in entropies:
        parts += [f"## Relative entropy along {curve.name}", ""]
        parts += [" ".join(entropy_findings(curve)), ""]
        parts += [f"![Relative entropy](relative_entropy_{curve.name}.png)", ""]
    if experts:
        parts += ["## Convergence of the loss", "", " ".join(loss_findings(experts)), ""]
        parts += ["![Iterations to converge](iterations.png)", "", "![Losses](losses.png)", ""]
        quality = quality_findings(experts)
        if quality:
            parts += ["## Quality of denoised images", "", " ".join(quality), ""]
            parts += ["![Qualities](qualities.png)", ""]
        parts += _table(experts)
    parts += ["## Clusters", ""]
    parts += [
        "Edges of partitions of the noise range; those of equal difficulty are in "
        "`clusters_*.json`, for `apps/train.py --clusters`.",
        "",
        "![Clusters](clusters.png)",
        "",
        "## How it was measured",
        "",
        *(f"- {sentence}" for sentence in conditions),
        "- Every number is in the .csv files beside this page.",
    ]
    return "\n".join(parts) + "\n"


def _table(experts: Sequence[ExpertCurves]) -> list[str]:
    rows = [
        "| expert | noise levels | loss before | converged | to 50% | to 90% | distance before "
        "| at the end | of the reference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in experts:
        low, high = e.interval
        cells = [
            str(e.number),
            f"[{low:.3g}, {high:.3g})",
            f"{e.loss[0]:.3f}",
            f"{converged(e.loss):.3f}",
            *(f"{iterations_to_reach(e.steps, e.loss, f):.0f}" for f in (0.5, 0.9)),
            *(f"{e.quality[i]:.1f}" if e.quality else "" for i in (0, -1)),
            "" if e.floor is None else f"{e.floor:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return [*rows, ""]

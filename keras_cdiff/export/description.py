"""What a training run says of itself, for the model card of what is exported from it."""

import json
import os
from pathlib import Path

_LICENCES = {"emoji": "Apache-2.0 (Noto Emoji, Copyright Google)"}


def describe_run(
    config: dict, workdir: str | os.PathLike | None = None, licence: str | None = None
) -> dict:
    """Returns preset, data, licence, curriculum, backend and metrics of a run, as plain data.

    Args:
        config: the run's configuration.
        workdir: its folder, for the newest evaluation in it; None for none.
        licence: the licence of the data; None for that of the embedded data, or unknown.
    """
    staging = config["curriculum"]
    curriculum = "none"
    if staging:
        count = len(staging["edges"]) - 1
        curriculum = f"{staging['kind']}, {count} {staging['clusters']} clusters"
        curriculum += f", patience {staging['patience']}"
    return {
        "preset": config["preset"],
        "data": config["data"],
        "licence": licence or _LICENCES.get(config["data"]),
        "curriculum": curriculum,
        "backend": config["backend"],
        "evaluation": None if workdir is None else _newest_evaluation(Path(workdir)),
    }


def _newest_evaluation(workdir: Path) -> dict | None:
    """The newest record of apps/evaluate.py: its metrics, and what they depend on."""
    paths = sorted((workdir / "evaluation").glob("evaluation-*.json"))
    if not paths:
        return None
    record = json.loads(paths[-1].read_text())
    extractor, generated = record["extractor"], record["generated"]
    return {
        "metrics": record["metrics"],
        "iteration": generated.get("iteration"),
        "of": f"{generated['count']} samples against {record['reference']['images']}, features of "
        f"{extractor['name']}, sampler {generated.get('sampler')}",
    }

"""What a training run says of itself, for the model card of what is exported from it."""

import json
import os
from pathlib import Path

import keras

from keras_cdiff.evaluation.image_sets import weights_digest

_LICENCES = {"emoji": "Apache-2.0 (Noto Emoji, Copyright Google)"}


def describe_run(
    config: dict,
    network: keras.Model,
    workdir: str | os.PathLike | None = None,
    licence: str | None = None,
) -> dict:
    """Returns preset, data, licence, curriculum, backend and metrics of a run, as plain data.

    Args:
        config: the run's configuration.
        network: the network that is exported.
        workdir: the run's folder, for the newest evaluation of that network in it; None for none.
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
        "evaluation": None if workdir is None else _newest_evaluation(Path(workdir), network),
    }


def _newest_evaluation(workdir: Path, network: keras.Model) -> dict | None:
    """The newest record of apps/evaluate.py of these very weights: its metrics, and what they
    depend on.
    """
    digest = weights_digest(network)
    for path in sorted((workdir / "evaluation").glob("evaluation-*.json"), reverse=True):
        record = json.loads(path.read_text())
        extractor, generated, reference = (
            record[name] for name in ("extractor", "generated", "reference")
        )
        # Of images from elsewhere no weights are known.
        if not generated.get("weights") or not digest.startswith(generated["weights"]):
            continue
        return {
            "metrics": record["metrics"],
            "iteration": generated["iteration"] or 0,
            "of": f"{generated['count']} samples ({generated['sampler']}, guidance "
            f"{generated['guidance']:g}) against {reference['count']} images of "
            f"{reference['images']}, features of {extractor['name']}",
        }
    return None

"""What a training run says of itself, for the model card of what is exported from it."""

import json
import os
from pathlib import Path

from keras_cdiff.common.arrays import fingerprint, network_weights
from keras_cdiff.model.diffusion_model import DiffusionModel

_LICENCES = {"emoji": "Apache-2.0 (Noto Emoji, Copyright Google)"}


def describe_run(
    model: DiffusionModel,
    config: dict,
    workdir: str | os.PathLike,
    use_ema: bool = True,
    licence: str | None = None,
) -> dict:
    """Returns preset, data, licence, curriculum, backend and metrics of a run, as plain data.

    Args:
        model: the trained model.
        config: the run's configuration.
        workdir: the run's folder; the newest evaluation of the weights exported is looked for in
            its folder `evaluation`, where apps/evaluate.py writes.
        use_ema: whether the averaged weights are exported.
        licence: the licence of the data; None for that of the embedded data, or unknown.
    """
    staging = config["curriculum"]
    curriculum = "none"
    if staging:
        count = len(staging["edges"]) - 1
        curriculum = f"{staging['kind']}, {count} {staging['clusters']} clusters"
        curriculum += f", patience {staging['patience']}"
    digest = fingerprint("", *network_weights(model.network(use_ema)))
    return {
        "preset": config["preset"],
        "data": config["data"],
        "licence": licence or _LICENCES.get(config["data"]),
        "curriculum": curriculum,
        "backend": config["backend"],
        "text_encoder": config.get("text_encoder"),
        "evaluation": _newest_evaluation(Path(workdir) / "evaluation", digest),
    }


def describe_weights(config: dict, weights: str | os.PathLike, licence: str | None = None) -> dict:
    """Returns what is known of a weights file: the preset it is of, and its name.

    Args:
        config: the configuration of the preset.
        weights: the file.
        licence: the licence of the data; None for unknown.
    """
    return {"preset": config["preset"], "licence": licence, "weights_file": Path(weights).name}


def _newest_evaluation(folder: Path, digest: str) -> dict | None:
    """The newest record of these very weights: its metrics, and what they depend on."""
    for path in sorted(folder.glob("evaluation-*.json"), reverse=True):
        record = json.loads(path.read_text())
        extractor, generated, reference = (
            record[name] for name in ("extractor", "generated", "reference")
        )
        # Of images from elsewhere no weights are known.
        if not generated.get("weights") or not digest.startswith(generated["weights"]):
            continue
        guidance = f"guidance {generated['guidance']:g}"
        if generated["guidance_interval"] is not None:
            guidance += f" in {generated['guidance_interval']}"
        return {
            "metrics": record["metrics"],
            "iteration": generated["iteration"] or 0,
            "of": f"{generated['count']} samples ({generated['sampler']}, {guidance}) against "
            f"{reference['count'] or 'an unknown number of'} images of {reference['images']}, "
            f"features of {extractor['name']}",
        }
    return None

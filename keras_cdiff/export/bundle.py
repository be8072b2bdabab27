"""A model and what is asked for as neutral files, from which a process with TensorFlow exports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras

from keras_cdiff.diffusion_model import DiffusionModel


def write_bundle(model: DiffusionModel, request: dict, folder: Path) -> None:
    """Writes the configuration of a model, the weights that are exported, and the request."""
    network = model.ema_backbone if request["weights"] == "average" else model.backbone
    folder.mkdir()
    network.save_weights(folder / "network.weights.h5")
    config = keras.saving.serialize_keras_object(model)
    config["config"]["ema"] = None
    config.pop("compile_config", None)
    (folder / "bundle.json").write_text(json.dumps({"model": config, "request": request}))


def read_bundle(folder: Path) -> tuple[DiffusionModel, dict]:
    """Returns the model of a bundle, its network with the weights to export, and the request."""
    content = json.loads((folder / "bundle.json").read_text())
    model = keras.saving.deserialize_keras_object(content["model"])
    model.backbone.load_weights(folder / "network.weights.h5")
    return model, content["request"]


def export_bundle(folder: Path, path: Path) -> None:
    """Has a process whose Keras is on TensorFlow write the export of a bundle."""
    run_with_tensorflow("-m", "keras_cdiff.export", str(folder), str(path))


def run_with_tensorflow(*arguments: str) -> None:
    """Runs Python with the arguments in a process whose Keras is on TensorFlow.

    Raises:
        RuntimeError: if it fails.
    """
    variables = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",  # graphs are the same for all devices, and this one is taken
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    process = subprocess.run(
        [sys.executable, *arguments], env=variables, capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(
            f"The process that exports with TensorFlow failed. It said:\n{process.stderr[-3000:]}"
        )

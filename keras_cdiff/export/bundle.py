"""A model and a request as neutral files, from which a process with TensorFlow exports."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_cdiff.autoencoders import Autoencoder, open_autoencoder
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, Sampler


def write_bundle(
    model: DiffusionModel,
    sampler: Sampler,
    guidance: Guidance,
    request: dict,
    autoencoder: Autoencoder | None,
    folder: Path,
) -> None:
    """Writes the parts of an export, and the weights that are exported.

    Args:
        model: the model; only the network that is exported is taken along.
        sampler: the sampler.
        guidance: the guidance.
        request: the other arguments of `export_sampler`, as plain data.
        autoencoder: what decodes samples that are latents, or None. One that is published is opened
            by its name, others are taken along.
        folder: the folder to make.

    Raises:
        ValueError: if a part is of a class that another process cannot import.
    """
    parts = {"model": model, "sampler": sampler, "guidance": guidance}
    content = {name: keras.saving.serialize_keras_object(part) for name, part in parts.items()}
    content["model"]["config"]["ema"] = None
    content["model"].pop("compile_config", None)
    content |= {"request": request, "modules": sorted(set(_modules(content)))}
    folder.mkdir()
    content["autoencoder"] = None
    if autoencoder is not None:
        name = autoencoder.name
        if autoencoder.kind == "kl":
            autoencoder.save(folder / "autoencoder")
            name = f"kl:{folder / 'autoencoder'}"
        content["autoencoder"] = {"name": name, "fingerprint": autoencoder.fingerprint()}
    model.network(request["weights"] == "average").save_weights(folder / "network.weights.h5")
    (folder / "bundle.json").write_text(json.dumps(content))


def read_bundle(
    folder: Path,
) -> tuple[DiffusionModel, Sampler, Guidance, dict, Autoencoder | None]:
    """Returns what `write_bundle` wrote; the model's network has the weights to export."""
    content = json.loads((folder / "bundle.json").read_text())
    for module in content["modules"]:  # they register their classes
        importlib.import_module(module)
    model, sampler, guidance = (
        keras.saving.deserialize_keras_object(content[name])
        for name in ("model", "sampler", "guidance")
    )
    model.backbone.load_weights(folder / "network.weights.h5")
    autoencoder = content["autoencoder"] and open_autoencoder(**content["autoencoder"])
    return model, sampler, guidance, content["request"], autoencoder


def _modules(config: object) -> Iterator[str]:
    """The modules of all classes in a configuration that are neither Keras' nor ours."""
    if isinstance(config, dict) and "class_name" in config and "module" in config:
        module = config["module"]
        if module in (None, "__main__"):  # Keras' word for the program itself is None
            raise ValueError(
                "The process that exports with TensorFlow must import each class: move this one "
                f"from the program into a module. Received: {config['class_name']}"
            )
        if module.split(".")[0] not in ("builtins", "keras", "keras_cdiff"):
            yield module
    values = config.values() if isinstance(config, dict) else config
    if isinstance(config, dict | list | tuple):
        for value in values:
            yield from _modules(value)


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

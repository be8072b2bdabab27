"""The SavedModel on disk: graphs, model card, metadata."""

import hashlib
import json
import platform
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.export.model_card import model_card
from keras_cdiff.export.sampling_graph import SamplingGraph
from keras_cdiff.version import __version__


def write_saved_model(model: DiffusionModel, request: dict, path: Path) -> None:
    """Writes graphs, model card and metadata.

    Args:
        model: the model, on the TensorFlow backend.
        request: what `export_sampler` was asked for, as plain data.
        path: the folder to make.
    """
    sampler, guidance = (
        keras.saving.deserialize_keras_object(request[name]) for name in ("sampler", "guidance")
    )
    use_ema = request["weights"] == "average" and model.ema_backbone is not None
    graph = SamplingGraph(model, sampler, guidance, use_ema, request["jit_compile"])
    signatures = graph.signatures()
    tf.saved_model.save(graph, str(path), signatures=signatures)
    metadata = {
        "weights": request["weights"],
        "weights_sha256": _digest(graph.weights),
        "parameters": int(sum(np.prod(weight.shape) for weight in graph.weights)),
        "iterations": request["iterations"],
        "image_shape": list(model.image_shape),
        "num_classes": model.num_classes,
        "value_range": {"sample": [0, 255], "sample_from_noise": [-1.0, 1.0]},
        "sampler": request["sampler"],
        "guidance": request["guidance"]["config"],
        "signatures": {
            name: {
                "inputs": _plain(inputs),
                "outputs": _plain(signatures[name].structured_outputs),
            }
            for name, inputs in graph.inputs().items()
        },
        "schedule": keras.saving.serialize_keras_object(model.schedule),
        "exported_from": request["exported_from"],
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "keras_cdiff": __version__,
            "tensorflow": tf.__version__,
        },
        "description": request["description"],
    }
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    (extra / "model_card.md").write_text(model_card(metadata))


def _digest(weights: list[tf.Variable]) -> str:
    sha = hashlib.sha256()
    for weight in weights:
        array = weight.numpy()
        sha.update(repr((array.shape, array.dtype.name)).encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _plain(specs: dict[str, tf.TensorSpec]) -> dict:
    """Shapes and dtypes for JSON, null where any size will do."""
    return {
        name: {"dtype": spec.dtype.name, "shape": list(spec.shape)} for name, spec in specs.items()
    }

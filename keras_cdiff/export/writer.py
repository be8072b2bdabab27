"""Writes an export, where Keras is on TensorFlow: the graphs, the model card, the metadata."""

import importlib.metadata
import json
import math
import platform
from pathlib import Path

import keras
import tensorflow as tf

from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.evaluation.image_sets import weights_digest
from keras_cdiff.export.formats import FORMATS
from keras_cdiff.export.model_card import model_card
from keras_cdiff.export.sampling_graph import SamplingGraph
from keras_cdiff.files import strict_json
from keras_cdiff.version import __version__


def write_export(model: DiffusionModel, request: dict, path: Path) -> None:
    """Makes the folder of an export.

    Args:
        model: the model, on the TensorFlow backend.
        request: what `export_sampler` was asked for, as plain data.
        path: the folder.
    """
    form = FORMATS[request["format"]]
    sampler, guidance = (
        keras.saving.deserialize_keras_object(request[name]) for name in ("sampler", "guidance")
    )
    averaged = request["weights"] == "average" and model.ema_backbone is not None
    network = model.ema_backbone if averaged else model.backbone
    if form.dtype not in (None, network.dtype_policy.name):
        network = _with_dtype(network, form.dtype)
    call = "inline" if form.inline else "xla" if request["jit_compile"] else "function"
    graph = SamplingGraph(model, network, sampler, guidance, call)
    form.write(graph, path)

    metadata = strict_json(
        {
            **request,
            "signatures": {
                name: {
                    "inputs": _plain(graph.inputs()[name]),
                    "outputs": _plain(graph.outputs()[name]),
                }
                for name in form.signatures
            },
            "value_ranges": _ranges(model),
            "weights_sha256": weights_digest(network),
            "parameters": network.count_params(),
            "dtype_policy": network.dtype_policy.name,
            "image_shape": model.image_shape,
            "num_classes": model.num_classes,
            "null_label": model.null_label,
            "schedule": keras.saving.serialize_keras_object(model.schedule),
            "versions": {
                "python": platform.python_version(),
                "keras_cdiff": __version__,
                **{name: importlib.metadata.version(name) for name in form.written_by},
            },
        }
    )
    extra = path / form.extra
    extra.mkdir(exist_ok=True)
    text = json.dumps(metadata, indent=2, allow_nan=False) + "\n"
    (extra / "metadata.json").write_text(text)
    (extra / "model_card.md").write_text(model_card(metadata))


def _with_dtype(network: keras.Model, dtype: str) -> keras.Model:
    """The same network, with the same weights, that computes in another dtype."""
    copy = type(network).from_config({**network.get_config(), "dtype": dtype})
    copy.set_weights(network.get_weights())
    return copy


def _plain(specs: dict[str, tf.TensorSpec]) -> dict:
    """Shapes, null where any size will do, and dtypes."""
    return {
        name: {"dtype": spec.dtype.name, "shape": list(spec.shape)} for name, spec in specs.items()
    }


def _ranges(model: DiffusionModel) -> dict:
    """What values the inputs may have, null for no bound, and those of the outputs."""
    null, condition = model.null_label, {}
    if model.num_classes:
        labels = [0, model.num_classes - 1 if null is None else null]
        condition = {"label": labels, "guidance": [1, 1] if null is None else [0, None]}
    return {
        "seeds": [0, 2**63 - 1],
        "level": [level if math.isfinite(level) else None for level in model.schedule.domain],
        **condition,
        "sample/images": [0, 255],
        "sample_from_noise/images": [-1, 1],
        "denoise/clean": [-1, 1],
    }

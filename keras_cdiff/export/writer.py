"""Writes an export, where Keras is on TensorFlow: the graphs, the model card, the metadata."""

import importlib.metadata
import json
import platform
from pathlib import Path

import keras
import tensorflow as tf

from keras_cdiff.autoencoders import Autoencoder
from keras_cdiff.common.arrays import fingerprint, network_weights
from keras_cdiff.common.files import strict_json
from keras_cdiff.export.formats import FORMATS
from keras_cdiff.export.model_card import model_card
from keras_cdiff.export.request_checks import ranges
from keras_cdiff.export.sampling_graph import SamplingGraph
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, Sampler
from keras_cdiff.version import __version__


def write_export(
    model: DiffusionModel,
    sampler: Sampler,
    guidance: Guidance,
    request: dict,
    autoencoder: Autoencoder | None,
    path: Path,
) -> None:
    """Makes the folder of an export.

    Args:
        model: the model, on the TensorFlow backend.
        sampler: how noise becomes images.
        guidance: levels and channels that are guided, and the recommended scale.
        request: the other arguments of `export_sampler`, as plain data.
        autoencoder: what decodes samples that are latents, or None.
        path: the folder.
    """
    form = FORMATS[request["format"]]
    network = model.network(request["weights"] == "average")
    if form.dtype not in (None, network.dtype_policy.name):
        network = _with_dtype(network, form.dtype)
    graph = SamplingGraph(
        model, network, sampler, guidance, form.plain, request["jit_compile"], autoencoder
    )
    form.write(graph, path)

    metadata = strict_json(
        {
            **request,
            **{
                name: keras.saving.serialize_keras_object(part)
                for name, part in (
                    ("sampler", sampler),
                    ("guidance", guidance),
                    ("schedule", model.schedule),
                    ("parameterization", model.parameterization),
                )
            },
            "num_steps": len(sampler.levels(model.schedule)),
            "signatures": {name: _described(model, graph, name) for name in form.signatures},
            "weights_sha256": fingerprint("", *network_weights(network)),
            "parameters": network.count_params(),
            "dtype_policy": network.dtype_policy.name,
            "image_shape": graph.pixel_shape(),
            "autoencoder": None if autoencoder is None else autoencoder.describe(),
            "context_width": model.network_inputs.context_width or 0,
            "can_be_guided": model.network_inputs.can_be_guided,
            "num_classes": model.num_classes,
            "null_label": model.network_inputs.null_label,
            "versions": {
                "python": platform.python_version(),
                "keras_cdiff": __version__,
                **{name: importlib.metadata.version(name) for name in ("keras", *form.written_by)},
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
    config = network.get_config()
    if "dtype" not in config:
        raise ValueError(
            f"This format holds networks of {dtype}, as which this one cannot be built again: its "
            f"get_config() gives no dtype. Received: {type(network).__name__} of "
            f"{network.dtype_policy.name}"
        )
    copy = type(network).from_config({**config, "dtype": dtype})
    copy.set_weights(network.get_weights())
    return copy


def _described(model: DiffusionModel, graph: SamplingGraph, name: str) -> dict:
    """Dtypes, shapes and ranges of a signature, null where any size or value will do."""
    allowed = ranges(model)
    # What is not clipped has no bounds, though images lie in about [-1, 1].
    bounds = {"sample": [0, 255]}.get(name, [None, None])
    return {
        "inputs": {
            key: {**_plain(spec), "range": [allowed[key].low, allowed[key].high]}
            for key, spec in graph.inputs()[name].items()
        },
        "outputs": {
            key: {**_plain(spec), "range": bounds} for key, spec in graph.outputs()[name].items()
        },
    }


def _plain(spec: tf.TensorSpec) -> dict:
    return {"dtype": spec.dtype.name, "shape": list(spec.shape)}

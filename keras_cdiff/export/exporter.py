"""export_sampler(): a trained model as an artefact that samples where this package is not."""

import importlib.util
import os
import tempfile
from pathlib import Path

import keras

from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.export.bundle import export_bundle, write_bundle
from keras_cdiff.samplers import Guidance, Sampler, default_sampler
from keras_cdiff.samplers.sample import check_options
from keras_cdiff.training.building import build_sampler, in_pixels

# What writes each format.
_WRITERS = {"saved_model": "tensorflow", "onnx": "tf2onnx", "litert": "tensorflow"}


def export_sampler(
    model: DiffusionModel,
    path: str | os.PathLike,
    sampler: Sampler | str | None = None,
    num_steps: int | None = None,
    *,
    guidance: float | Guidance = 1.0,
    use_ema: bool = True,
    format: str = "saved_model",
    jit_compile: bool = False,
    description: dict | None = None,
) -> None:
    """Writes a folder with a model that samples: whole tasks, `sample`, `sample_from_noise` and
    `denoise`.

    A SavedModel needs nothing but TensorFlow. `SamplingGraph.inputs` says what goes in and out;
    bad requests are refused with a message. Beside the graphs lie assets.extra/model_card.md and
    assets.extra/metadata.json. ONNX and LiteRT hold the last two tasks, check no requests, compute
    in float32, and have those two files beside them. Whatever the backend here, TensorFlow writes:
    on JAX and PyTorch in a process of its own.

    Args:
        model: the trained model.
        path: folder to write, which must not exist or be empty.
        sampler: a `Sampler`, or the name of one; None for what `keras_cdiff.sample` uses.
        num_steps: steps of the sampler; None for its own.
        guidance: the recommended scale, for the model card; a `Guidance` also decides on the levels
            and channels that are guided.
        use_ema: whether the averaged weights are exported, if the model keeps an average.
        format: "saved_model", "onnx" (needs tf2onnx) or "litert".
        jit_compile: whether XLA compiles a SavedModel's network, once for each batch size: faster
            for transformers, but not every server has it.
        description: what `describe_run` returns, for the model card; None for nothing.

    Raises:
        ValueError: if an argument does not fit the model, or there is something at `path`.
        ModuleNotFoundError: if what writes the format is not installed.
        RuntimeError: if the process with TensorFlow fails.
    """
    path = Path(path)
    _check(model, path, format, jit_compile)
    request = _request(
        model,
        _sampler(model, sampler, num_steps),
        Guidance.of(guidance),
        weights="average" if use_ema and model.ema_backbone is not None else "raw",
        format=format,
        jit_compile=bool(jit_compile),
        description=description or {},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: written beside it, then renamed.
    with tempfile.TemporaryDirectory(prefix="writing-", dir=path.parent) as scratch:
        target = Path(scratch) / "export"
        if keras.backend.backend() == "tensorflow":
            from keras_cdiff.export.writer import write_export

            write_export(model, request, target)
        else:
            bundle = Path(scratch) / "bundle"
            write_bundle(model, request, bundle)
            export_bundle(bundle, target)
        if path.exists():
            path.rmdir()
        os.replace(target, path)


def _check(model: DiffusionModel, path: Path, format: str, jit_compile: bool) -> None:
    if format not in _WRITERS:
        raise ValueError(
            f"`format` must be one of {', '.join(_WRITERS)}. Received: format={format!r}"
        )
    for package in ("tensorflow", _WRITERS[format]):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"{package} writes this format and is not installed: pip install {package}, beside "
                f"the packages that are there. Received: format={format!r}"
            )
    if jit_compile and format != "saved_model":
        raise ValueError(
            "XLA compiles the network of a SavedModel alone: leave `jit_compile` out. "
            f"Received: jit_compile={jit_compile}, format={format!r}"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            "The export must go to a new or an empty folder: choose another, or remove this one. "
            f"Received: path={str(path)!r}"
        )
    channels = model.image_shape[-1]
    if not in_pixels(channels):
        raise ValueError(
            "Samples of this model are latents, and a decoder is exported with latent support, "
            f"which is to come. Received: a model of {channels} channels"
        )


def _request(
    model: DiffusionModel, sampler: Sampler, guidance: Guidance, **options: object
) -> dict:
    """Returns what is asked for as plain data, checked against the model."""
    # Requests bring a scale of their own, where the model can be guided at all.
    asked = guidance
    if model.null_label is not None:
        asked = Guidance(2.0, guidance.channels, guidance.interval)
    check_options(model, sampler, asked, label=model.num_classes > 0, context=False)
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # within fit() on JAX the weights are not on the model
    return {
        "sampler": keras.saving.serialize_keras_object(sampler),
        "guidance": keras.saving.serialize_keras_object(guidance),
        "exported_from": keras.backend.backend(),
        "iterations": int(keras.ops.convert_to_numpy(model.iteration)),
        **options,
    }


def _sampler(
    model: DiffusionModel, sampler: Sampler | str | None, num_steps: int | None
) -> Sampler:
    if isinstance(sampler, str):
        return build_sampler(sampler, num_steps, model.image_shape[-1])
    sampler = sampler or default_sampler(model)
    if num_steps is None:
        return sampler
    return type(sampler).from_config({**sampler.get_config(), "num_steps": num_steps})

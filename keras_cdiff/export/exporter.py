"""export_sampler(): a trained model as an artefact that samples where this package is not."""

import importlib.util
import os
from pathlib import Path

import keras

from keras_cdiff.autoencoders import Autoencoder
from keras_cdiff.common.files import write_whole_folder
from keras_cdiff.export.bundle import export_bundle, write_bundle
from keras_cdiff.export.formats import FORMATS
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, Sampler, default_sampler
from keras_cdiff.samplers.sample import check_options
from keras_cdiff.training.building import build_sampler


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
    autoencoder: Autoencoder | None = None,
) -> None:
    """Writes a folder with a model that samples: a TensorFlow SavedModel, or another format.

    Its signatures are whole tasks, for any batch size B:

        sample: seeds int64 (B,) -> images uint8 (B, H, W, C)
        sample_from_noise: noise float32 (B, H, W, C), or (B, n + 1, H, W, C) if each of n steps
            adds noise -> images float32 (B, H, W, C), not clipped
        denoise: x float32 (B, H, W, C), level float32 (B,) -> clean float32 (B, H, W, C)

    each with label int32 (B,) too if the model has classes, with context float32 (B, L, D) if it
    takes contexts, and with guidance float32 () in both cases. Of a model of latents noise, x and
    clean are latents, and images are decoded. A SavedModel
    needs nothing but TensorFlow and refuses bad requests with a message. ONNX and LiteRT hold the
    last two tasks, check no requests, and compute in float32. A model card and metadata lie in the
    folder. Whatever the backend here, TensorFlow writes: on JAX and PyTorch in another process.

    Args:
        model: the trained model.
        path: folder to write, which must not exist or be empty.
        sampler: a `Sampler`, or the name of one; None for what `keras_cdiff.sample` uses.
        num_steps: steps of the sampler; None for its own.
        guidance: the recommended scale, for the model card; a `Guidance` also decides on the levels
            and channels that are guided.
        use_ema: whether the averaged weights are exported, if the model keeps an average.
        format: "saved_model", "onnx" (needs tf2onnx) or "litert".
        jit_compile: whether XLA compiles a SavedModel's network, once for each number of rows that
            it is asked for: faster for transformers, but not every server has it.
        description: what `describe_run` or `describe_weights` returns, for the model card.
        autoencoder: what decodes the samples of a model of latents, whose decoder is exported too.

    Raises:
        ValueError: if an argument does not fit the model, or there is something at `path`.
        ModuleNotFoundError: if what writes the format is not installed.
        RuntimeError: if the process with TensorFlow fails.
    """
    _check_path(Path(path))
    _check_format(model, format, jit_compile, autoencoder)
    sampler, guidance = _sampler(model, sampler, num_steps), Guidance.of(guidance)
    # Requests bring a scale of their own, where the model can be guided at all.
    strongest = guidance
    if model.network_inputs.can_be_guided:
        strongest = Guidance(2.0, guidance.channels, guidance.interval)
    context = bool(model.network_inputs.context_width)
    check_options(model, sampler, strongest, label=model.num_classes > 0, context=context)
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # within fit() on JAX the weights are not on the model
    averages = model.averages() if use_ema else []
    request = {
        "format": format,
        "weights": "average" if averages else "raw",
        "ema": keras.saving.serialize_keras_object(averages[0][0]) if averages else None,
        "jit_compile": bool(jit_compile),
        "exported_from": keras.backend.backend(),
        "iterations": int(keras.ops.convert_to_numpy(model.iteration)),
        "description": description or {},
    }

    def write(folder: Path) -> None:
        if keras.backend.backend() == "tensorflow":
            from keras_cdiff.export.writer import write_export

            write_export(model, sampler, guidance, request, autoencoder, folder)
        else:
            bundle = folder.with_name("bundle")
            write_bundle(model, sampler, guidance, request, autoencoder, bundle)
            export_bundle(bundle, folder)

    write_whole_folder(path, write)


def _check_path(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            "The export must go to a new or an empty folder: choose another, or remove this one. "
            f"Received: path={str(path)!r}"
        )


def _check_format(
    model: DiffusionModel, format: str, jit_compile: bool, autoencoder: Autoencoder | None
) -> None:
    if format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)}. Received: format={format!r}"
        )
    for package in FORMATS[format].written_by:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"{package} writes this format and is not installed: pip install {package}. "
                f"Received: format={format!r}"
            )
    if jit_compile and format != "saved_model":
        raise ValueError(
            "XLA compiles the network of a SavedModel alone: leave `jit_compile` out. "
            f"Received: jit_compile={jit_compile}, format={format!r}"
        )
    channels = model.image_shape[-1]
    wanted = channels if model.is_latent else None
    if wanted != (None if autoencoder is None else autoencoder.channels):
        raise ValueError(
            "A model of latents is exported with the autoencoder that decodes them, and one of "
            "images without: give `autoencoder`, or leave it out. "
            f"Received: a model of {channels} channels, autoencoder={autoencoder!r}"
        )
    size = 4 * model.backbone.count_params()
    if autoencoder is not None:
        size += 4 * autoencoder.decoder.count_params()
    if size >= FORMATS[format].limit:
        raise ValueError(
            "A network in this format must have less than "
            f"{FORMATS[format].limit / 2**30:g} GiB: export a SavedModel. "
            f"Received: format={format!r}, for a network of {size / 2**30:.1f} GiB"
        )


def _sampler(
    model: DiffusionModel, sampler: Sampler | str | None, num_steps: int | None
) -> Sampler:
    if isinstance(sampler, str):
        return build_sampler(sampler, num_steps, model.is_latent)
    sampler = sampler or default_sampler(model)
    if num_steps is None:
        return sampler
    config = sampler.get_config()
    if "num_steps" not in config or not isinstance(config.get("spacing"), str | None):
        raise ValueError(
            "The steps of this sampler are its own, such as levels passed as `spacing`: "
            f"leave `num_steps` out. Received: num_steps={num_steps}, sampler={sampler!r}"
        )
    return type(sampler).from_config({**config, "num_steps": num_steps})

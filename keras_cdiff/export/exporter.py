"""export_sampler(): a trained model as a TensorFlow SavedModel that needs TensorFlow alone."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import keras

from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, Sampler, default_sampler
from keras_cdiff.training.building import build_sampler, in_pixels


def export_sampler(
    model: DiffusionModel,
    path: str | os.PathLike,
    sampler: Sampler | str | None = None,
    num_steps: int | None = None,
    *,
    guidance: float | Guidance = 1.0,
    use_ema: bool = True,
    jit_compile: bool = False,
    description: dict | None = None,
) -> None:
    """Writes a SavedModel whose signatures are `sample`, `sample_from_noise` and `denoise`.

    It needs nothing but TensorFlow, whatever the backend here: on JAX and PyTorch a process with
    the TensorFlow backend writes it. See `SamplingGraph.inputs` for what goes in and out.
    Beside the graphs lie assets.extra/model_card.md and assets.extra/metadata.json.

    Args:
        model: the trained model.
        path: folder to write, which must not exist or be empty.
        sampler: a `Sampler`, or the name of one; None for what `keras_cdiff.sample` uses.
        num_steps: steps of the sampler; None for its own.
        guidance: the recommended scale, for the model card; a `Guidance` also decides on the levels
            and channels that are guided.
        use_ema: whether the averaged weights are exported, if the model keeps an average.
        jit_compile: whether XLA compiles the network, once for each batch size: faster for
            transformers, but not every server has it.
        description: what `describe_run` returns, for the model card; None for nothing.

    Raises:
        ValueError: if an argument does not fit the model, or there is something at `path`.
        RuntimeError: if the process with TensorFlow fails.
    """
    path = Path(path)
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
    request = {
        "sampler": keras.saving.serialize_keras_object(_sampler(model, sampler, num_steps)),
        "guidance": keras.saving.serialize_keras_object(Guidance.of(guidance)),
        "weights": "average" if use_ema and model.ema_backbone is not None else "raw",
        "jit_compile": bool(jit_compile),
        "exported_from": keras.backend.backend(),
        "iterations": int(keras.ops.convert_to_numpy(model.iteration)),
        "description": description or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: written beside it, then renamed.
    with tempfile.TemporaryDirectory(prefix="writing-", dir=path.parent) as scratch:
        target = Path(scratch) / "saved_model"
        if keras.backend.backend() == "tensorflow":
            from keras_cdiff.export.saved_model import write_saved_model

            write_saved_model(model, request, target)
        else:
            _in_tensorflow(model, request, Path(scratch) / "bundle", target)
        if path.exists():
            path.rmdir()
        os.replace(target, path)


def _sampler(
    model: DiffusionModel, sampler: Sampler | str | None, num_steps: int | None
) -> Sampler:
    if isinstance(sampler, str):
        return build_sampler(sampler, num_steps, model.image_shape[-1])
    sampler = sampler or default_sampler(model)
    if num_steps is None:
        return sampler
    return type(sampler).from_config({**sampler.get_config(), "num_steps": num_steps})


def _in_tensorflow(model: DiffusionModel, request: dict, bundle: Path, target: Path) -> None:
    """Has another process, whose Keras is on TensorFlow, write the SavedModel from a bundle."""
    bundle.mkdir()
    network = model.ema_backbone if request["weights"] == "average" else model.backbone
    network.save_weights(bundle / "network.weights.h5")
    config = keras.saving.serialize_keras_object(model)
    (bundle / "bundle.json").write_text(json.dumps({"model": config, "request": request}))
    root = Path(__file__).parents[2]  # so that it finds this very package
    variables = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "keras_cdiff.export", str(bundle), str(target)]
    process = subprocess.run(command, env=variables, capture_output=True, text=True)
    shutil.rmtree(bundle)
    if process.returncode:
        raise RuntimeError(
            "The process that exports with TensorFlow failed; is tensorflow installed beside "
            f"{request['exported_from']}? It said:\n{process.stderr[-3000:]}"
        )


def read_bundle(bundle: Path) -> tuple[DiffusionModel, dict]:
    """Returns the model and the request of a bundle, the network's weights as its raw ones."""
    content = json.loads((bundle / "bundle.json").read_text())
    config = content["model"]
    config["config"]["ema"] = None
    config.pop("compile_config", None)
    model = keras.saving.deserialize_keras_object(config)
    model.backbone.load_weights(bundle / "network.weights.h5")
    return model, content["request"]

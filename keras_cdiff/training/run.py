"""One training run from a resolved configuration: data, model, curriculum, logs, weights."""

import contextlib
import copy
import functools
import json
import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_cdiff.data import Source, WithContext, make_dataset
from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.tensorboard import TensorBoardWriter
from keras_cdiff.training.building import (
    build_curriculum,
    build_model,
    build_optimizer,
    build_sampler,
)
from keras_cdiff.training.callbacks import RunLog, SampleGrid, StopAt
from keras_cdiff.training.checkpoint import CheckpointFolder
from keras_cdiff.training.checkpoint_callback import CheckpointCallback, Interrupted
from keras_cdiff.training.continuation import fit_intervals
from keras_cdiff.training.evaluation import evaluation_callbacks
from keras_cdiff.training.generation import open_run_autoencoder
from keras_cdiff.training.interruption import Interruption, WorkdirLock
from keras_cdiff.training.model_state import restore
from keras_cdiff.training.nonfinite import NonFiniteGuard
from keras_cdiff.training.run_data import grid_conditions, open_data, with_contexts
from keras_cdiff.training.watched_source import WatchedSource
from keras_cdiff.training.workdir import Workdir, differences


def train(
    config: dict,
    workdir: str | os.PathLike,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> DiffusionModel:
    """Trains the model of `config` and keeps everything about the run in `workdir`.

    A run that did not come to its end goes on from its newest checkpoint. On one backend and
    machine it ends as if nothing had happened: same weights, averages and log, bit for bit. Nothing
    is written before data, model and curriculum have been checked.

    Args:
        config: what `resolve` returned; without "sample_every" no grids are drawn.
        workdir: folder of the run; see `Workdir` for what lies where.
        callbacks: what else watches the run, at the end of each log interval before its checkpoint.

    Returns:
        The trained model.

    Raises:
        ValueError: if the data cannot be used, or the workdir belongs to another configuration,
            is used by another process, or holds a finished run.
        FloatingPointError: if the loss stays NaN or infinite; see `NonFiniteGuard`.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint of the last step.
        OSError: if something cannot be written; earlier checkpoints are intact.
    """
    config = copy.deepcopy(config)
    backbone, training, sampling = (
        config["model"]["backbone"],
        config["training"],
        config["sampling"],
    )
    source, text_encoder = open_data(config)
    folder = Workdir(workdir)
    folder.check(config)
    autoencoder = open_run_autoencoder(config) if _decodes(config) else None
    _batches(config, source, 0)  # what does not fit the data is said now
    keras.utils.set_random_seed(config["seed"])
    model = build_model(config)
    model.compile(build_optimizer(config), jit_compile=training["jit_compile"])
    model.optimizer.build(model.trainable_variables)
    curriculum = build_curriculum(config)
    if curriculum:
        curriculum.set_model(model)  # its clusters are part of the state
    sampler = build_sampler(
        sampling["sampler"],
        sampling["num_steps"],
        backbone["channels"],
        **sampling.get("options", {}),
    )
    tensorboard = TensorBoardWriter(folder.tensorboard)
    watching = evaluation_callbacks(
        model, config, source, sampler, folder, tensorboard, text_encoder, autoencoder
    )
    watching += callbacks
    with contextlib.ExitStack() as stack:
        stack.enter_context(WorkdirLock(folder.path))
        source = with_contexts(source, text_encoder, folder.path)
        watched = WatchedSource(source)
        make_batches = functools.partial(_batches, config, watched)
        if training["sample_every"]:
            watching.insert(
                0,
                SampleGrid(
                    folder.samples,
                    training["sample_every"],
                    sampler,
                    guidance=sampling["guidance"],
                    tensorboard=tensorboard,
                    **grid_conditions(source, model.num_classes),
                    decode=None if autoencoder is None else autoencoder.decode,
                ),
            )
        interruption = stack.enter_context(Interruption())
        stack.callback(tensorboard.close)
        settings = config["checkpoints"]
        checkpoints = CheckpointFolder(
            folder.checkpoints, settings["keep_last"], settings["keep_every"]
        )
        saver = CheckpointCallback(
            checkpoints,
            settings["every"],
            {"config": config, "data": _description(source)},
            interruption,
        )
        stack.callback(saver.writer.close)
        step, metrics = _continue(model, config, source, folder, checkpoints)
        folder.claim(config, step)
        if autoencoder is not None:
            folder.keep_autoencoder(autoencoder)
        checkpoints.set_aside(step)  # those that did not verify
        tensorboard.resumed_at = step or None
        print(_summary(model, config, source, folder, step), flush=True)
        together = [
            *([curriculum] if curriculum else []),
            NonFiniteGuard(training["max_nonfinite"], saver.writer),
            StopAt(training["steps"]),
            RunLog(training["steps"], training["batch_size"], folder.log_file, tensorboard),
            *watching,
            saver,
        ]
        try:
            fit_intervals(
                model, make_batches, training["steps"], training["log_every"], together, metrics
            )
        except (FloatingPointError, Interrupted):
            raise
        except Exception:
            if watched.error is not None:
                raise watched.error  # noqa: B904 (the same error, perhaps in TensorFlow's words)
            raise
        folder.save_weights(model)
    print(f"wrote {folder.weights}", flush=True)
    return model


def _batches(config: dict, source: Source | WatchedSource, start_step: int) -> object:
    """The batches of a run from a step on."""
    backbone, training = config["model"]["backbone"], config["training"]
    return make_dataset(
        source,
        backbone["image_size"],
        training["batch_size"],
        seed=config["seed"],
        channels=backbone["channels"],
        horizontal_flip=training["horizontal_flip"],
        start_step=start_step,
        labels=backbone["num_classes"] > 0,
    )


def _continue(
    model: DiffusionModel,
    config: dict,
    source: Source,
    folder: Workdir,
    checkpoints: CheckpointFolder,
) -> tuple[int, dict[str, np.ndarray] | None]:
    """Restores the newest checkpoint, if there is one.

    Returns:
        Its step, and its arrays if they hold the metrics of a log interval that goes on.
    """
    folder.check(config)  # again: another process may have been here before the lock
    received = f"Received: workdir={str(folder.path)!r}"
    found = checkpoints.latest() if folder.config_file.exists() else None
    if found is None:
        if folder.weights_step() is not None:
            raise ValueError(
                "The workdir holds a finished run, which cannot be trained further without its "
                f"last checkpoint: choose another --workdir. {received}"
            )
        return 0, None
    step, arrays, metadata = found
    training = config["training"]
    if step > training["steps"]:
        raise ValueError(
            f"The run has taken {step} steps already: give no fewer --steps. {received}, "
            f"steps={training['steps']}"
        )
    before = {"config": {}, "data": {}, **metadata}
    changes = differences(before["config"], json.loads(json.dumps(config)))
    changes += differences(before["data"], _description(source), "data.")
    if changes:
        raise ValueError(
            f"The checkpoint of step {step} belongs to another run, or its data has changed: "
            f"restore what it was, or choose another --workdir. {received}, where\n  "
            + "\n  ".join(changes)
        )
    restore(model, arrays)
    same_interval = before["config"]["training"]["log_every"] == training["log_every"]
    return step, arrays if same_interval else None


def _description(source: Source | WithContext) -> dict:
    """What must not change in the data while a run trains on it, as far as it is known without
    reading the images.
    """
    description = {"images": len(source), "class_names": list(source.class_names)}
    if hasattr(source, "latent_size"):
        description["latents"] = source.digest()
    if isinstance(source, WithContext):
        description["captions"] = source.embeddings.folder.name
    return description


def _decodes(config: dict) -> bool:
    """Whether a run needs its autoencoder: to show or measure samples, or to keep a copy of it."""
    described = config["autoencoder"] or {"name": ""}
    shown = config["training"]["sample_every"] or config["evaluation"]
    return bool(shown) or described["name"].startswith("kl:")


def _summary(
    model: DiffusionModel, config: dict, source: Source, folder: Workdir, step: int
) -> str:
    training = config["training"]
    begins = f"goes on from step {step}, " if step else ""
    return (
        f"{config['preset']}: {begins}{model.backbone.count_params():,} parameters, "
        f"{len(source):,} images from {source.name}, {training['steps']} steps of "
        f"{training['batch_size']} on {keras.backend.backend()}, into {folder.path}"
    )

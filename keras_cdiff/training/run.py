"""One training run from a resolved configuration: data, model, curriculum, logs, weights."""

import contextlib
import copy
import functools
import os
from collections.abc import Sequence

import keras

from keras_cdiff.autoencoders import Autoencoder
from keras_cdiff.common.tensorboard import TensorBoardWriter
from keras_cdiff.data import Source, make_dataset
from keras_cdiff.distribution import Engine, LostPeer, Processes, first_does, spread
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.training.building import (
    build_curriculum,
    build_model,
    build_optimizer,
    build_sampler,
)
from keras_cdiff.training.callbacks import RunLog, SampleGrid, StopAt
from keras_cdiff.training.checkpoint import CheckpointFolder
from keras_cdiff.training.checkpoint_callback import CheckpointCallback, Interrupted
from keras_cdiff.training.continuation import continue_run, describe_data, fit_intervals
from keras_cdiff.training.evaluation import evaluation_callbacks
from keras_cdiff.training.generation import open_run_autoencoder
from keras_cdiff.training.interruption import Interruption, WorkdirLock
from keras_cdiff.training.nonfinite import NonFiniteGuard
from keras_cdiff.training.run_data import WatchedSource, grid_conditions, open_data, with_contexts
from keras_cdiff.training.watching import Watching, silence
from keras_cdiff.training.workdir import Workdir


def train(
    config: dict,
    workdir: str | os.PathLike,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    engine: Engine | None = None,
) -> DiffusionModel:
    """Trains the model of `config` and keeps everything about the run in `workdir`.

    A run that did not come to its end goes on from its newest checkpoint. On one backend, machine
    and number of devices it ends as if nothing had happened: same weights, averages and log, bit
    for bit; on another number of devices but for the order of sums. Nothing is written before data,
    model and curriculum have been checked.

    Args:
        config: what `resolve` returned; without "sample_every" no grids are drawn.
        workdir: folder of the run, where all processes see the same files; see `Workdir` for what
            lies where.
        callbacks: what else watches the run, at the end of each log interval before its checkpoint.
        engine: what `keras_cdiff.distribution.distribute` gave, to train on several devices; each
            process calls this then. None for one device.

    Returns:
        The trained model.

    Raises:
        ValueError: if the data cannot be used, or the workdir belongs to another configuration,
            is used by another process, or holds a finished run.
        FloatingPointError: if the loss stays NaN or infinite; see `NonFiniteGuard`.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint of the last step.
        LostPeer: if another process has ended or does not answer.
        OSError: if something cannot be written; earlier checkpoints are intact.
    """
    engine = engine or Engine(Processes())
    try:
        return _train(copy.deepcopy(config), Workdir(workdir), callbacks, engine)
    except Exception as error:
        if engine.is_loss(error) and not isinstance(error, LostPeer):
            raise LostPeer(error) from error
        raise


def _train(
    config: dict,
    folder: Workdir,
    callbacks: Sequence[keras.callbacks.Callback],
    engine: Engine,
) -> DiffusionModel:
    training, processes = config["training"], engine.processes
    source, text_encoder = open_data(config)
    folder.check(config)
    engine.check_batch_size(training["batch_size"])
    processes.check_same("configuration", config)
    autoencoder = open_run_autoencoder(config) if _decodes(config) else None
    _batches(config, source, 0, engine)  # what does not fit the data is said now
    with engine.scope():
        keras.utils.set_random_seed(config["seed"])
        model = build_model(config)
        model.compile(build_optimizer(config), jit_compile=training["jit_compile"])
        model.optimizer.build(model.trainable_variables)
    engine.check_model(model)
    curriculum = build_curriculum(config)
    if curriculum:
        curriculum.verbose = int(processes.first)
        curriculum.set_model(model)  # its clusters are part of the state
    sampling = config["sampling"]
    sampler = build_sampler(
        sampling["sampler"],
        sampling["num_steps"],
        config["model"]["backbone"]["channels"],
        **sampling.get("options", {}),
    )
    tensorboard = TensorBoardWriter(folder.tensorboard) if processes.first else None
    with engine.local():
        watching = evaluation_callbacks(
            model, config, source, sampler, folder, tensorboard, text_encoder, autoencoder
        )
    watching += callbacks
    with contextlib.ExitStack() as stack:
        first_does(processes, lambda: stack.enter_context(WorkdirLock(folder.path)))
        with spread(processes):  # captions are embedded once for all
            source = with_contexts(source, text_encoder, folder.path)
        watched = WatchedSource(source)
        make_batches = functools.partial(_batches, config, watched, engine=engine)
        if training["sample_every"]:
            grid = SampleGrid(
                folder.samples,
                training["sample_every"],
                sampler,
                guidance=sampling["guidance"],
                tensorboard=tensorboard,
                **grid_conditions(source, model.num_classes),
                decode=None if autoencoder is None else autoencoder.decode,
            )
            watching.insert(0, grid)
        if processes.count > 1:
            watching = [Watching(callback, engine) for callback in watching]
        interruption = stack.enter_context(Interruption())
        settings = config["checkpoints"]
        checkpoints = CheckpointFolder(
            folder.checkpoints, settings["keep_last"], settings["keep_every"]
        )
        saver = CheckpointCallback(
            checkpoints,
            settings["every"],
            {"config": config, "data": describe_data(source)},
            interruption,
            processes,
        )
        stack.callback(saver.writer.close)
        step, metrics = continue_run(model, config, source, folder, checkpoints, processes)
        run_log = RunLog(training["steps"], training["batch_size"], folder.log_file, tensorboard)
        if processes.first:
            stack.callback(tensorboard.close)
            tensorboard.resumed_at = step or None
            print(_summary(model, config, source, folder, step, engine), flush=True)
        else:
            silence(run_log)
        first_does(processes, lambda: _claim(folder, config, step, autoencoder, checkpoints))
        together = [
            *([curriculum] if curriculum else []),
            NonFiniteGuard(training["max_nonfinite"], saver.writer),
            StopAt(training["steps"]),
            run_log,
            *watching,
            saver,
        ]
        try:
            fit_intervals(
                model,
                lambda start_step: engine.batches(make_batches(start_step)),
                training["steps"],
                training["log_every"],
                together,
                metrics,
            )
        except (FloatingPointError, Interrupted):
            raise
        except Exception:
            if watched.error is not None:
                raise watched.error  # noqa: B904 (the same error, perhaps in TensorFlow's words)
            raise
        trained = engine.local_copy(model)
        engine.refresh(trained, model)
        first_does(processes, lambda: folder.save_weights(trained))
    if processes.first:
        print(f"wrote {folder.weights}", flush=True)
    return model


def _claim(
    folder: Workdir,
    config: dict,
    step: int,
    autoencoder: Autoencoder | None,
    checkpoints: CheckpointFolder,
) -> None:
    """Makes the folder that of the run, which begins or goes on at a step."""
    folder.claim(config, step)
    if autoencoder is not None:
        folder.keep_autoencoder(autoencoder)
    checkpoints.set_aside(step)  # those that did not verify


def _batches(
    config: dict, source: Source | WatchedSource, start_step: int, engine: Engine
) -> object:
    """The batches of a run from a step on, this process' share of each."""
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
        shard=engine.shard,
    )


def _decodes(config: dict) -> bool:
    """Whether a run needs its autoencoder: to show or measure samples, or to keep a copy of it."""
    described = config["autoencoder"] or {"name": ""}
    shown = config["training"]["sample_every"] or config["evaluation"]
    return bool(shown) or described["name"].startswith("kl:")


def _summary(
    model: DiffusionModel,
    config: dict,
    source: Source,
    folder: Workdir,
    step: int,
    engine: Engine,
) -> str:
    training = config["training"]
    begins = f"goes on from step {step}, " if step else ""
    return (
        f"{config['preset']}: {begins}{model.backbone.count_params():,} parameters, "
        f"{len(source):,} images from {source.name}, {training['steps']} steps of "
        f"{training['batch_size']} on {keras.backend.backend()}{engine.describe()}, "
        f"into {folder.path}"
    )

"""One training run from a resolved configuration: data, model, curriculum, logs, weights."""

import contextlib
import copy
import os
from collections.abc import Sequence

import keras

from keras_cdiff.common.tensorboard import TensorBoardWriter
from keras_cdiff.distribution import Engine, LostPeer, Processes, on_rank0, shared_by
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Sampler
from keras_cdiff.training.building import (
    build_curriculum,
    build_model,
    build_optimizer,
    build_run_sampler,
)
from keras_cdiff.training.callbacks import (
    NonFiniteGuard,
    RankAware,
    RunLog,
    StopAt,
    silence,
)
from keras_cdiff.training.checkpoint import CheckpointFolder
from keras_cdiff.training.checkpoint_callback import CheckpointCallback, Interrupted
from keras_cdiff.training.configuration import of_run
from keras_cdiff.training.continuation import continue_run, fit_intervals
from keras_cdiff.training.evaluation import evaluation_callbacks
from keras_cdiff.training.generation import SampleGrid
from keras_cdiff.training.interruption import Interruption
from keras_cdiff.training.run_data import ReadErrors, RunData, open_data
from keras_cdiff.training.settings import Checkpoints, Training
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
        if engine.is_peer_lost(error) and not isinstance(error, LostPeer):
            raise LostPeer(error) from error
        raise


def _train(
    config: dict,
    folder: Workdir,
    callbacks: Sequence[keras.callbacks.Callback],
    engine: Engine,
) -> DiffusionModel:
    data = open_data(config)
    folder.check(config)
    engine.check_batch_size(config["training"]["batch_size"])
    engine.processes.check_same("configuration", config)
    data.open_autoencoder()
    data.batches(0, engine.shard)  # what does not fit the data is said now
    model = _build_compiled(config, engine)
    sampler = build_run_sampler(config)
    tensorboard = TensorBoardWriter(folder.tensorboard) if engine.processes.first else None
    with engine.local():
        observers = evaluation_callbacks(model, data, sampler, folder, tensorboard)
    observers += callbacks
    with contextlib.ExitStack() as stack:
        on_rank0(engine.processes, lambda: stack.enter_context(folder.lock()))
        with shared_by(engine.processes):  # captions are embedded once for all
            data.embed_captions(folder.path)
        if config["training"]["sample_every"]:
            observers.insert(0, _sample_grid(data, sampler, folder, tensorboard))
        if engine.processes.count > 1:
            observers = [RankAware(callback, engine) for callback in observers]
        _fit(model, data, folder, observers, tensorboard, engine, stack)
        trained = engine.local_copy(model)
        engine.refresh(trained, model)
        on_rank0(engine.processes, lambda: folder.save_weights(trained))
    if engine.processes.first:
        print(f"wrote {folder.weights}", flush=True)
    return model


def _build_compiled(config: dict, engine: Engine) -> DiffusionModel:
    """The run's model, on the devices of the engine, with its optimizer's variables."""
    with engine.scope():
        keras.utils.set_random_seed(config["seed"])
        model = build_model(config)
        model.compile(build_optimizer(config), jit_compile=config["training"]["jit_compile"])
        model.optimizer.build(model.trainable_variables)
    engine.check_model(model)
    return model


def _sample_grid(
    data: RunData, sampler: Sampler, folder: Workdir, tensorboard: TensorBoardWriter | None
) -> SampleGrid:
    return SampleGrid(
        folder.samples,
        data.config["training"]["sample_every"],
        sampler,
        guidance=data.config["sampling"]["guidance"],
        tensorboard=tensorboard,
        **data.grid_conditions(),
        decode=None if data.autoencoder is None else data.autoencoder.decode,
    )


def _fit(
    model: DiffusionModel,
    data: RunData,
    folder: Workdir,
    observers: list[keras.callbacks.Callback],
    tensorboard: TensorBoardWriter | None,
    engine: Engine,
    stack: contextlib.ExitStack,
) -> None:
    """Trains from the newest checkpoint, if there is one, to the end of the run."""
    config, processes = data.config, engine.processes
    training = of_run(Training, config)
    curriculum = build_curriculum(config)
    if curriculum:
        curriculum.verbose = int(processes.first)
        curriculum.set_model(model)  # its clusters are part of the state
    saver = _checkpoint_callback(data, folder, processes, stack)
    step, metrics = continue_run(model, data, folder, saver.folder, processes)
    run_log = RunLog(training.steps, training.batch_size, folder.log_file, tensorboard)
    if processes.first:
        stack.callback(tensorboard.close)
        tensorboard.resumed_at = step or None
        print(_summary(model, data, folder, step, engine), flush=True)
    else:
        silence(run_log)
    on_rank0(processes, lambda: _claim(folder, data, step, saver.folder))
    reader = ReadErrors(data.source)
    with reader.errors.raised(unless=(FloatingPointError, Interrupted)):
        fit_intervals(
            model,
            lambda start: engine.batches(data.batches(start, engine.shard, reader)),
            training.steps,
            training.log_every,
            [
                *([curriculum] if curriculum else []),
                NonFiniteGuard(training.max_nonfinite, saver.writer),
                StopAt(training.steps),
                run_log,
                *observers,
                saver,
            ],
            metrics,
        )


def _checkpoint_callback(
    data: RunData, folder: Workdir, processes: Processes, stack: contextlib.ExitStack
) -> CheckpointCallback:
    """What saves checkpoints, also when a signal ends the run."""
    kept = of_run(Checkpoints, data.config)
    callback = CheckpointCallback(
        CheckpointFolder(folder.checkpoints, kept.keep_last, kept.keep_every),
        kept.checkpoint_every,
        {"config": data.config, "data": data.describe()},
        stack.enter_context(Interruption()),
        processes,
    )
    stack.callback(callback.writer.close)
    return callback


def _claim(folder: Workdir, data: RunData, step: int, checkpoints: CheckpointFolder) -> None:
    """Makes the folder that of the run, which begins or goes on at a step."""
    folder.claim(data.config, step)
    if data.autoencoder is not None:
        folder.keep_autoencoder(data.autoencoder)
    checkpoints.set_aside(step)  # those that did not verify


def _summary(
    model: DiffusionModel, data: RunData, folder: Workdir, step: int, engine: Engine
) -> str:
    config, training = data.config, data.config["training"]
    begins = f"goes on from step {step}, " if step else ""
    return (
        f"{config['preset']}: {begins}{model.backbone.count_params():,} parameters, "
        f"{len(data.source):,} images from {data.source.name}, {training['steps']} steps of "
        f"{training['batch_size']} on {keras.backend.backend()}{engine.describe()}, "
        f"into {folder.path}"
    )

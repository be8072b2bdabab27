"""How a run goes on: from its newest checkpoint, which may lie within a log interval, as if there
had been no interruption.
"""

import json
import math
from collections.abc import Callable

import keras
import numpy as np

from keras_cdiff.common.arrays import fingerprint
from keras_cdiff.common.callbacks import PeriodicCallback
from keras_cdiff.distribution import Processes
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.training.callbacks import RankAware
from keras_cdiff.training.checkpoint import CheckpointFolder
from keras_cdiff.training.configuration import differences, read
from keras_cdiff.training.model_state import restore, restore_metrics
from keras_cdiff.training.run_data import RunData
from keras_cdiff.training.workdir import Workdir


def continue_run(
    model: DiffusionModel,
    data: RunData,
    folder: Workdir,
    checkpoints: CheckpointFolder,
    processes: Processes,
) -> tuple[int, dict[str, np.ndarray] | None]:
    """Restores the newest checkpoint, if there is one, which must be the same for all processes.

    Args:
        model: a compiled model whose optimizer is built.
        data: what it trains on, with its configuration.
        folder: of the run.
        checkpoints: those in it.
        processes: the processes that train training.

    Returns:
        Its step, and its arrays if they hold the metrics of a log interval that goes on.

    Raises:
        ValueError: if the checkpoint is that of another run, or there is none of a finished one.
    """
    config = data.config
    folder.check(config)  # again: another process may have been here before the lock
    received = f"Received: workdir={str(folder.path)!r}"
    found = checkpoints.latest() if folder.config_file.exists() else None
    if processes.count > 1:
        digest = None if found is None else fingerprint("", **found[1])
        processes.check_same("newest checkpoint", digest)
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
    changes = differences(read(before["config"]), json.loads(json.dumps(config)))
    changes += differences(before["data"], data.describe(), "data.")
    if changes:
        raise ValueError(
            f"The checkpoint of step {step} belongs to another run, or its data has changed: "
            f"restore what it was, or choose another --workdir. {received}, where\n  "
            + "\n  ".join(changes)
        )
    restore(model, arrays)
    same_interval = before["config"]["training"]["log_every"] == training["log_every"]
    return step, arrays if same_interval else None


def fit_intervals(
    model: DiffusionModel,
    make_batches: Callable[[int], object],
    steps: int,
    log_every: int,
    callbacks: list[keras.callbacks.Callback],
    arrays: dict[str, np.ndarray] | None = None,
) -> None:
    """Trains a model from where it stands to a number of steps, an epoch a log interval.

    Within a log interval `fit` is called twice, since its epochs are all of one length: for what is
    left of the interval, and for the others. The callbacks see one training.

    Args:
        model: a compiled model, at `model.iteration`.
        make_batches: takes a step, and returns the batches from there on.
        steps: training steps in all.
        log_every: training steps of a log interval.
        callbacks: what `fit` takes; one of them must stop training at `steps`.
        arrays: what `snapshot` returned at this step, for the metrics of the begun interval.
    """
    done = int(keras.ops.convert_to_numpy(model.iteration))
    if done >= steps:
        return
    epochs = math.ceil(steps / log_every)
    begun, within = divmod(done, log_every)
    calls = [(done, begun, begun + 1, log_every - within)] if within else []
    rest = begun + 1 if within else begun
    if rest < epochs:
        calls.append((max(done, rest * log_every), rest, epochs, log_every))
    for callback in callbacks:
        if isinstance(callback, PeriodicCallback | RankAware):
            callback.count_from = begun * log_every
    if within and arrays:
        callbacks = [_RestoreMetrics(arrays), *callbacks]
    training = _OneTraining(callbacks, model, len(calls), epochs)
    for first_step, initial_epoch, last_epoch, steps_per_epoch in calls:
        training.set_params({"epochs": epochs, "steps": steps_per_epoch, "verbose": 0})
        model.fit(
            make_batches(first_step),
            initial_epoch=initial_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps_per_epoch,
            callbacks=training,
            shuffle=False,  # the batches are shuffled already
        )


class _RestoreMetrics(keras.callbacks.Callback):
    """Gives the first epoch the metrics of a log interval that had begun, once."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__()
        self.arrays = arrays

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self.arrays is not None:  # `fit` has just reset them
            restore_metrics(self.model, self.arrays)
            self.arrays = None


class _OneTraining(keras.callbacks.CallbackList):
    """Callbacks for which training begins with the first of some calls of `fit`, and ends with the
    last.
    """

    def __init__(self, callbacks: list, model: DiffusionModel, calls: int, epochs: int):
        super().__init__(callbacks, add_history=True, model=model, epochs=epochs)
        self._calls, self._ended = calls, 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._ended == 0:
            super().on_train_begin(logs)

    def on_train_end(self, logs: dict | None = None) -> None:
        self._ended += 1
        if self._ended == self._calls:
            super().on_train_end(logs)

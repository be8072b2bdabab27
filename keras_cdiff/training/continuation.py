"""`fit` for a run that may begin within a log interval, as if there had been no interruption."""

import math
from collections.abc import Callable

import keras
import numpy as np

from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.periodic import PeriodicCallback
from keras_cdiff.training.model_state import restore_metrics


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
        if isinstance(callback, PeriodicCallback):
            callback.count_from = begun * log_every
    if within and arrays:
        callbacks = [_RestoreMetrics(arrays), *callbacks]
    together = _OneTraining(callbacks, model, len(calls), epochs)
    for first_step, initial_epoch, last_epoch, steps_per_epoch in calls:
        together.set_params({"epochs": epochs, "steps": steps_per_epoch, "verbose": 0})
        model.fit(
            make_batches(first_step),
            initial_epoch=initial_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps_per_epoch,
            callbacks=together,
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

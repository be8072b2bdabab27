"""Callbacks that look at a model which several processes train."""

import contextlib
from collections.abc import Iterator

import keras

from keras_cdiff.common.callbacks import PeriodicCallback
from keras_cdiff.distribution import Engine, spread


class Watching(keras.callbacks.Callback):
    """Has a callback look at the model at the end of each log interval, in all processes at once.

    They share the work of drawing samples and of seeing them; the few of a grid each decodes by
    itself, if they are latents. Of a `PeriodicCallback` the first process alone writes and prints;
    others are called in all processes as they are.

    Args:
        callback: what looks.
        engine: that of the training.
    """

    def __init__(self, callback: keras.callbacks.Callback, engine: Engine):
        super().__init__()
        self.callback, self.engine = callback, engine
        if not engine.processes.first and isinstance(callback, PeriodicCallback):
            silence(callback)

    @property
    def count_from(self) -> int | None:
        """As that of a `PeriodicCallback`."""
        return getattr(self.callback, "count_from", None)

    @count_from.setter
    def count_from(self, step: int | None) -> None:
        self.callback.count_from = step

    def set_params(self, params: dict) -> None:
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._copy = self.engine.local_copy(model)
        self.callback.set_model(self._copy)

    def on_train_begin(self, logs: dict | None = None) -> None:
        with self._together():
            self.callback.on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        with self._together(epoch):
            self.callback.on_epoch_end(epoch, logs)
        self.model.stop_training = self.engine.processes.any(self._copy.stop_training)

    def on_train_end(self, logs: dict | None = None) -> None:
        with self._together():
            self.callback.on_train_end(logs)

    @contextlib.contextmanager
    def _together(self, epoch: int | None = None) -> Iterator[None]:
        """Has the copy as it will be looked at: at the end of an epoch only if it will be."""
        with self.engine.local(), spread(self.engine.processes):
            self._copy.stop_training = self.model.stop_training
            if self._copy is not self.model:
                self._copy.iteration.assign(keras.ops.convert_to_numpy(self.model.iteration))
                idle = isinstance(self.callback, PeriodicCallback) and epoch is not None
                if not idle or self.callback.is_due(epoch):
                    self.engine.refresh(self._copy, self.model)
            yield


def silence(callback: keras.callbacks.Callback) -> None:
    """Makes a callback write no files and print nothing."""
    for name in ("path", "folder", "tensorboard"):
        if hasattr(callback, name):
            setattr(callback, name, None)
    if hasattr(callback, "verbose"):
        callback.verbose = 0

"""The bases of callbacks that know the training step, and that act every so many."""

import abc

import keras

from keras_cdiff.common.checks import check_integer


class StepCallback(keras.callbacks.Callback):
    """Counts training steps; methods that are overridden call these first.

    It counts by itself since on JAX each look at the model while `fit` runs copies its state.

    Attributes:
        step: training steps that the model has taken.
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.step = int(keras.ops.convert_to_numpy(self.model.iteration))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # With steps_per_execution > 1 this is called once for several steps.
        self.step += batch - self._last_batch
        self._last_batch = batch


class PeriodicCallback(keras.callbacks.Callback, abc.ABC):
    """Acts every some steps, at the end of an epoch, and at the end of training.

    Args:
        every: training steps between two actions, rounded up to the end of an epoch, >= 1.

    Attributes:
        count_from: the step from which `every` is counted; None for the one at which training
            begins. Training that goes on within an epoch counts from that epoch's beginning.

    Raises:
        ValueError: if `every` is out of its range.
    """

    def __init__(self, every: int):
        super().__init__()
        self.every = check_integer("every", every, meaning="training steps")
        self.count_from: int | None = None

    @abc.abstractmethod
    def act(self, step: int, logs: dict | None) -> None:
        """Does what is due after a training step; `logs` are those of the epoch."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._acted = self._step() if self.count_from is None else self.count_from

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.is_due(epoch):
            self._act(self._step(), logs)

    def is_due(self, epoch: int) -> bool:
        """Returns whether an action is due at the end of an epoch."""
        # What the last epoch's action adds to its logs must be there before these are history.
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        step = self._step()
        return step // self.every > self._acted // self.every or (last and step > self._acted)

    def on_train_end(self, logs: dict | None = None) -> None:
        step = self._step()
        if step > self._acted:  # a callback after this one ended training
            self._act(step, logs)

    def _act(self, step: int, logs: dict | None) -> None:
        self._acted = step
        self.act(step, logs)

    def _step(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.iteration))

"""Callbacks of a run: its log, its end, its guard, and what runs in several processes."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_cdiff.common.callbacks import PeriodicCallback, StepCallback
from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import append_record, strict_json
from keras_cdiff.common.tensorboard import TensorBoardWriter
from keras_cdiff.distribution import Engine, shared_by
from keras_cdiff.model.tracking import accumulation_steps
from keras_cdiff.training.checkpoint import CheckpointFolder
from keras_cdiff.training.checkpoint_callback import BackgroundWriter


class RunLog(keras.callbacks.Callback):
    """Records images seen, loss, loss per cluster, stage, interval, learning rate and speed.

    An epoch of `fit` is one log interval. The record of each is printed, appended to a JSON-lines
    file and written as TensorBoard scalars. In the file null stands for NaN, as of a cluster
    without samples, and "inf" for infinity; stage 0 is training without a curriculum.

    Args:
        steps: training steps of the whole run, for the display.
        batch_size: images a step.
        path: JSON-lines file to append to, or None.
        tensorboard: a `TensorBoardWriter`, or None.
        verbose: whether to print a line a record.
    """

    def __init__(
        self,
        steps: int,
        batch_size: int,
        path: str | Path | None = None,
        tensorboard: TensorBoardWriter | None = None,
        verbose: int = 1,
    ):
        super().__init__()
        self.steps = steps
        self.batch_size = batch_size
        self.path = path
        self.tensorboard = tensorboard
        self.verbose = verbose

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._began = time.perf_counter()
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._batches = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        elapsed = time.perf_counter() - self._began
        record = self._record(logs, elapsed / max(self._batches, 1))
        if self.path is not None:
            append_record(self.path, record)
        if self.tensorboard is not None:
            self.tensorboard.scalars(record["step"], _scalars(record))
        if self.verbose:
            print(self._line(record), flush=True)

    def _line(self, record: dict) -> str:
        low, high = map(_number, record["interval"])
        stage = f"  stage {record['stage']} [{low:.4g}, {high:.4g})" if record["stage"] else ""
        return (
            f"step {record['step']}/{self.steps}  {record['images']:,} images  "
            f"loss {_number(record['loss']):.4f}{stage}  "
            f"learning rate {record['learning_rate']:.2e}  "
            f"{record['seconds_per_step'] * 1000:.0f} ms/step"
        )

    def _record(self, logs: dict, seconds_per_step: float) -> dict:
        model, numpy = self.model, keras.ops.convert_to_numpy
        cluster_loss = numpy(model.cluster_loss.result()).tolist()
        step = int(numpy(model.iteration))
        return {
            "step": step,
            "images": step * self.batch_size,
            "loss": strict_json(float(logs["loss"])),
            "batch_loss": strict_json(float(logs["batch_loss"])),
            "cluster_edges": strict_json(model.cluster_loss.edges),
            "cluster_loss": strict_json(cluster_loss),
            "stage": int(numpy(model.curriculum_state)[0]),
            "interval": strict_json(numpy(model.noise_interval).tolist()),
            "learning_rate": float(numpy(model.optimizer.learning_rate)),
            "seconds_per_step": seconds_per_step,
            "time": time.time(),
        }


class StopAt(StepCallback):
    """Ends training at an exact number of steps, within an epoch too.

    Args:
        steps: training steps of the model after which to stop.
    """

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        if self.step >= self.steps:
            self.model.stop_training = True


def _number(value: float | str | None) -> float:
    """The inverse of `strict_json`."""
    return math.nan if value is None else float(value)


def _scalars(record: dict) -> dict[str, float]:
    names = ("loss", "batch_loss", "learning_rate", "seconds_per_step")
    scalars = {name: _number(record[name]) for name in names}
    low, high = map(_number, record["interval"])
    scalars |= {
        "curriculum/stage": record["stage"],
        "curriculum/interval_low": low,
        "curriculum/interval_high": high,
    }
    for number, loss in enumerate(record["cluster_loss"], start=1):
        if loss is not None:  # a cluster without samples
            scalars[f"cluster_loss/{number:02d}"] = _number(loss)
    return scalars


class NonFiniteGuard(StepCallback):
    """Raises when more losses in a row than `max_nonfinite` were not finite, and at the end of an
    epoch when as many batches have led to no update of the weights.

    It reads the loss of each step, which waits for the step to end. What it tolerates should not
    reach the weights: see `keras_cdiff.model.guarded_optimizer.GuardedOptimizer`.

    Args:
        max_nonfinite: losses in a row that are tolerated, >= 0.
        checkpoints: the run's checkpoints, or what writes them, whose newest is named in the
            message; None if there are none.

    Raises:
        FloatingPointError: from within `fit`, as said above.
    """

    def __init__(
        self,
        max_nonfinite: int = 10,
        checkpoints: CheckpointFolder | BackgroundWriter | None = None,
    ):
        super().__init__()
        self.max_nonfinite = check_integer("max_nonfinite", max_nonfinite, 0)
        self.checkpoints = checkpoints

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._moved_at = self.step
        self._in_a_row = 0
        self._updates = self._count_updates()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        loss = float(logs["batch_loss"])
        if math.isfinite(loss):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row > self.max_nonfinite:
            self._end(f"The loss was not finite in {self._in_a_row} steps in a row", loss)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        # Here rather than after each step, as JAX has the optimizer's variables only now. A loss
        # may be finite where its gradient is not.
        updates = self._count_updates()
        still = self.step - self._moved_at
        if updates != self._updates:
            self._updates, self._moved_at = updates, self.step
        elif still > self.max_nonfinite + accumulation_steps(self.model.optimizer):
            what = f"The gradient was not finite: {still} steps in a row led to no update"
            self._end(what, float(logs["batch_loss"]))

    def _count_updates(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _end(self, what: str, loss: float) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()  # within fit() on JAX the weights are not on the model
        low, high = keras.ops.convert_to_numpy(self.model.noise_interval).tolist()
        steps = self.checkpoints.steps() if self.checkpoints is not None else []
        steps = [step for step in steps if step <= self.step]
        last = f"step {steps[-1]} ({str(self.checkpoints.file(steps[-1]))!r})" if steps else "none"
        raise FloatingPointError(
            f"{what}, more than max_nonfinite={self.max_nonfinite}, at iteration {self.step} with "
            f"noise levels in [{low:.6g}, {high:.6g}); last good checkpoint: {last}. Try a lower "
            "learning rate or global_clipnorm, and look for NaN in the data. "
            f"Received: batch_loss={loss}"
        )


class RankAware(keras.callbacks.Callback):
    """Runs a callback in all processes of a training, each with its own copy of the model.

    The processes share the work of drawing samples and of extracting features; each decodes the few
    samples of a grid by itself, if they are latents. Of a `PeriodicCallback` the first process
    alone writes and prints; others are called in all processes as they are.

    Args:
        callback: the callback.
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
        with self._with_copy():
            self.callback.on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        with self._with_copy(epoch):
            self.callback.on_epoch_end(epoch, logs)
        self.model.stop_training = self.engine.processes.any(self._copy.stop_training)

    def on_train_end(self, logs: dict | None = None) -> None:
        with self._with_copy():
            self.callback.on_train_end(logs)

    @contextlib.contextmanager
    def _with_copy(self, epoch: int | None = None) -> Iterator[None]:
        """Updates the copy; at the end of an epoch only if the callback will use it."""
        with self.engine.local(), shared_by(self.engine.processes):
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

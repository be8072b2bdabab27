"""Checkpoints of a training while `fit` runs, and how it goes on from them."""

import concurrent.futures
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_cdiff.common.callbacks import StepCallback
from keras_cdiff.common.checks import check_integer
from keras_cdiff.distribution import Processes, on_rank0
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.training.checkpoint import CheckpointFolder
from keras_cdiff.training.interruption import EXIT_INTERRUPTED, Interruption
from keras_cdiff.training.model_state import complete, restore, snapshot

_STEPS_BETWEEN_EXCHANGES = 10


class Interrupted(Exception):  # noqa: N818 (nothing has gone wrong)
    """A signal has ended a training, which has left a checkpoint."""

    exit_code = EXIT_INTERRUPTED


class CheckpointCallback(StepCallback):
    """Saves a checkpoint every some steps, at the end, and where a signal ends training.

    Put it last: a checkpoint at the end of an epoch is taken when the other callbacks have seen
    that end, so that a training that goes on from there has nothing to repeat. `fit` begins with
    whole epochs only: to go on exactly, let `every` be a multiple of their steps. The training
    waits for a copy of the state only, which a thread writes while it goes on.

    Args:
        folder: a `CheckpointFolder`, or the path of one.
        every: training steps between two checkpoints, >= 1.
        metadata: plain data for JSON to keep with each.
        interruption: tells whether training shall end, by the exception `Interrupted`; None if that
            is nobody's wish.
        processes: the processes that train together, of which the first writes, and which end at
            the same step if one of them gets a signal; None for this one alone.

    Attributes:
        writer: the `BackgroundWriter`, to be closed if `fit` raises.

    Raises:
        ValueError: if `every` is out of its range; or from `fit`, if the folder holds checkpoints
            of later steps than the model's.
        OSError: from `fit`, if a checkpoint cannot be written; earlier ones are intact.

    Example:

    ```python
    step = resume(model, "checkpoints")  # 0 at the first time
    batches = make_dataset(source, image_size=32, batch_size=64, start_step=step)
    model.fit(
        batches,
        steps_per_epoch=500,
        initial_epoch=step // 500,
        epochs=100,
        shuffle=False,
        callbacks=[curriculum, CheckpointCallback("checkpoints", every=500)],
    )
    ```
    """

    def __init__(
        self,
        folder: str | os.PathLike | CheckpointFolder,
        every: int = 500,
        metadata: Mapping | None = None,
        interruption: Interruption | None = None,
        processes: Processes | None = None,
    ):
        super().__init__()
        self.folder = folder if isinstance(folder, CheckpointFolder) else CheckpointFolder(folder)
        self.every = check_integer("every", every, meaning="training steps")
        self.metadata = dict(metadata or {})
        self.interruption = interruption
        self.processes = processes or Processes()
        self.writer = BackgroundWriter(self.folder)

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._saved = self.step
        later = [step for step in self.folder.steps() if step > self.step]
        if later:
            raise ValueError(
                f"The folder holds checkpoints of later steps, {later}, than the model's "
                f"{self.step}: call resume(model, folder) first, or give another folder. "
                f"Received: folder={str(self.folder.path)!r}"
            )

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        self.writer.check()
        # The last batch of an epoch is for `on_epoch_end`.
        if batch + 1 != self.params.get("steps") and not self.model.stop_training:
            # An exchange takes time; a single process knows at once.
            exchanged = self.processes.count == 1 or self.step % _STEPS_BETWEEN_EXCHANGES == 0
            self._save_if_due(logs, exchanged)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._save_if_due(logs, True)

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.step > self._saved:
            self._save()
        on_rank0(self.processes, self.writer.wait)

    def _save_if_due(self, logs: dict, exchanged: bool) -> None:
        ending = self.interruption is not None and self.interruption.requested
        ending = exchanged and self.processes.any(ending)
        due = self.step // self.every > self._saved // self.every
        # Steps that are skipped must not displace checkpoints of better times.
        due = due and math.isfinite(float(logs["batch_loss"]))
        if due or (ending and self.step > self._saved):
            self._save()
        if ending:
            on_rank0(self.processes, self.writer.wait)
            raise Interrupted(
                f"Interrupted by {self._reason()} at step {self.step}, with a "
                f"checkpoint in {self.folder.path}: the same command goes on from there."
            )

    def _reason(self) -> str:
        own = None if self.interruption is None else self.interruption.signal
        return "another process of this task" if own is None else own.name

    def _save(self) -> None:
        if self.processes.first:
            self.writer.save(self.step, snapshot(self.model), self.metadata)
        else:
            complete(self.model)
        self._saved = self.step


def resume(model: DiffusionModel, folder: str | os.PathLike | CheckpointFolder) -> int:
    """Gives a model the state of the newest checkpoint that verifies.

    Metrics, such as the mean loss of an epoch that was not at its end, begin anew. Checkpoints that
    do not verify, and are newer, are set aside.

    Args:
        model: a compiled model with the same variables, on any backend.
        folder: a `CheckpointFolder`, or the path of one.

    Returns:
        The training steps that the model has taken; 0 if the folder holds no checkpoint.

    Raises:
        ValueError: if the model is not compiled, the checkpoint is that of a model or optimizer
            with other variables, or all are damaged.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The state of a training includes the optimizer's: compile the model before resume(). "
            f"Received: model={model.name!r} without optimizer"
        )
    folder = folder if isinstance(folder, CheckpointFolder) else CheckpointFolder(folder)
    found = folder.latest()
    if found is None:
        return 0
    step, arrays, _ = found
    model.optimizer.build(model.trainable_variables)
    restore(model, arrays, metrics=False)
    folder.set_aside(step)
    return step


class BackgroundWriter:
    """Saves into a folder from a thread of its own, one checkpoint at a time.

    What goes wrong there is raised by the next call of `save`, `check`, `wait`, `steps` or `close`.
    As a context manager it closes itself.

    Args:
        folder: a `CheckpointFolder`.
    """

    def __init__(self, folder: CheckpointFolder):
        self.folder = folder
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending = None

    def save(self, step: int, arrays: dict[str, np.ndarray], metadata: dict) -> None:
        """Begins to save, once an earlier save is done; the arrays must not change any more."""
        self.wait()
        self._pending = self._thread.submit(self.folder.save, step, arrays, metadata)

    def check(self) -> None:
        """Raises what has gone wrong, without waiting."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is left to write."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending])
            done, self._pending = self._pending, None
            done.result()

    def steps(self) -> list[int]:
        """Returns the steps that there is a file of, ascending, when nothing is left to write."""
        self.wait()
        return self.folder.steps()

    def file(self, step: int) -> Path:
        """Returns where the checkpoint of a step lies."""
        return self.folder.file(step)

    def close(self) -> None:
        """Waits and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""Checkpoints written by a thread, while training goes on."""

import concurrent.futures
from pathlib import Path

import numpy as np

from keras_cdiff.training.checkpoint import CheckpointFolder


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

"""Ends a run whose loss stays NaN or infinite."""

import math

import keras


class NonFiniteGuard(keras.callbacks.Callback):
    """Raises when more losses in a row than `max_nonfinite` were not finite.

    It reads the loss of each step, which waits for the step to end. What it tolerates should not
    reach the weights: see `keras_cdiff.guarded_optimizer.GuardedOptimizer`.

    Args:
        max_nonfinite: losses in a row that are tolerated, >= 0.

    Attributes:
        last_checkpoint: step of the last good checkpoint, to be named in the message; None if there
            is none.

    Raises:
        FloatingPointError: from within `fit`, as said above.
    """

    def __init__(self, max_nonfinite: int = 10):
        super().__init__()
        if not isinstance(max_nonfinite, int) or max_nonfinite < 0:
            raise ValueError(
                "`max_nonfinite` must be an integer >= 0. "
                f"Received: max_nonfinite={max_nonfinite!r}"
            )
        self.max_nonfinite = max_nonfinite
        self.last_checkpoint: int | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._step = int(keras.ops.convert_to_numpy(self.model.iteration))
        self._in_a_row = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._step += batch - self._last_batch
        self._last_batch = batch
        if math.isfinite(float(logs["batch_loss"])):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row > self.max_nonfinite:
            low, high = keras.ops.convert_to_numpy(self.model.noise_interval).tolist()
            known = self.last_checkpoint is not None
            checkpoint = f"step {self.last_checkpoint}" if known else "none"
            raise FloatingPointError(
                f"The loss was not finite in {self._in_a_row} steps in a row, more than "
                f"max_nonfinite={self.max_nonfinite}, at iteration {self._step} with noise levels "
                f"in [{low:.6g}, {high:.6g}); last good checkpoint: {checkpoint}. Try a lower "
                "learning rate or global_clipnorm, and look for NaN in the data. "
                f"Received: batch_loss={float(logs['batch_loss'])}"
            )

"""Ends a run whose loss or gradient stays NaN or infinite."""

import math

import keras

from keras_cdiff.common.callbacks import StepCallback
from keras_cdiff.common.checks import check_integer
from keras_cdiff.model.guarded_optimizer import accumulation_steps
from keras_cdiff.training.background_writer import BackgroundWriter
from keras_cdiff.training.checkpoint import CheckpointFolder


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

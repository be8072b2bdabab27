"""Pacing: when a stage of the curriculum ends.

Pure state machines. Their state is three numbers, exact in float32, so that it can live in a model
weight and a restored run goes on bit for bit like one that was never interrupted.
"""

import abc
import math

import numpy as np

from keras_cdiff.common.checks import check_integer

# float32, in which a pacing's state is kept, holds every integer up to here.
_MOST_ITERATIONS = 2**24 - 1


class Pacing(abc.ABC):
    """Base of all pacings: takes the loss of each training iteration and says when the stage ends.

    Attributes:
        best: lowest loss of the stage, float32; infinite until there is one.
        counter: iterations counted towards the end of the stage.
        smoothed: running average of the stage's loss, float32; infinite until there is one.
        reason: one sentence on why the last finished stage ended, None before that.
    """

    def __init__(self):
        self.reason: str | None = None
        self.reset()

    def reset(self) -> None:
        """Starts a stage afresh."""
        self.best = np.float32(np.inf)
        self.counter = 0
        self.smoothed = np.float32(np.inf)

    def update(self, loss: float, iterations: int = 1) -> bool:
        """Takes the loss of one iteration and returns whether the stage ends with it.

        When it does, the next update belongs to the next stage.

        Args:
            loss: loss of the batch; it may be infinite or not a number.
            iterations: how many training iterations this loss stands for, >= 1.
        """
        iterations = _check_iterations("iterations", iterations)
        with np.errstate(over="ignore"):
            loss = np.float32(loss)
        reason = self.advance(loss, iterations)
        if reason is None:
            return False
        self.reason = reason
        self.reset()
        return True

    @abc.abstractmethod
    def advance(self, loss: np.float32, iterations: int) -> str | None:
        """Updates the state and returns why the stage ends, or None if it goes on."""

    @property
    def state(self) -> tuple[float, float, float]:
        """The stage's progress so far: (best, counter, smoothed)."""
        return float(self.best), float(self.counter), float(self.smoothed)

    def set_state(self, state: tuple[float, float, float]) -> None:
        """Goes on from a `state` of earlier.

        Args:
            state: (best, counter, smoothed), in any sequence or array.

        Raises:
            ValueError: if it is not three numbers with a whole counter of at least 0.
        """
        numbers = [float(number) for number in state]
        if len(numbers) != 3 or not (numbers[1].is_integer() and numbers[1] >= 0):
            raise ValueError(
                "`state` must be (best, counter, smoothed) with a whole counter of at least 0, as "
                f"`Pacing.state` gives it. Received: state={tuple(numbers)}"
            )
        self.best = np.float32(numbers[0])
        self.counter = int(numbers[1])
        self.smoothed = np.float32(numbers[2])

    @abc.abstractmethod
    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""

    @classmethod
    def from_config(cls, config: dict) -> "Pacing":
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class PatiencePacing(Pacing):
    """Ends a stage once its loss has stopped improving.

    An iteration whose loss is below best - min_delta sets best and resets the counter; any other
    adds one to the counter. When the counter exceeds the patience, the stage ends. A loss that is
    not finite never improves.

    On noise that no longer falls a stage lasts about 1.8 times the patience.

    Args:
        patience: tau, iterations without improvement that a stage may last, 1 <= patience < 2^24.
        min_delta: how far below the best a loss must be to improve on it, >= 0.
        smoothing: s in [0, 1). Compares smoothed = s smoothed + (1 - s) loss, one step an update,
            which starts at the stage's first finite loss and leaves out those that are not finite.
            0 is the plain rule on the batch's loss.

    Raises:
        ValueError: if an argument is out of range.

    Source: Kim et al., "Denoising Task Difficulty-based Curriculum for Training Diffusion Models",
        2025. A patience of 200 is what re-implementations use; min_delta and smoothing are
        additions.
    """

    def __init__(self, patience: int = 200, min_delta: float = 0.0, smoothing: float = 0.0):
        self.patience = _check_iterations("patience", patience)
        if not 0.0 <= min_delta < math.inf:
            raise ValueError(
                "`min_delta` must be finite and at least 0; 0 counts any lower loss as an "
                f"improvement. Received: min_delta={min_delta}"
            )
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(
                "`smoothing` must be in [0, 1): 0 for none, 0.99 for about a hundred iterations. "
                f"Received: smoothing={smoothing}"
            )
        self.min_delta = float(min_delta)
        self.smoothing = float(smoothing)
        super().__init__()

    def advance(self, loss: np.float32, iterations: int) -> str | None:
        if np.isfinite(loss):
            self.smoothed = self._smooth(loss)
        if np.isfinite(loss) and self.smoothed < self.best - np.float32(self.min_delta):
            self.best = self.smoothed
            self.counter = 0
            return None
        self.counter += iterations
        if self.counter <= self.patience:
            return None
        if np.isinf(self.best):
            return f"no finite loss in {self.counter} iterations"
        return f"no improvement on {self.best:.4g} for {self.counter} iterations"

    def _smooth(self, loss: np.float32) -> np.float32:
        if self.smoothing == 0.0 or np.isinf(self.smoothed):
            return loss
        weight = np.float32(self.smoothing)
        return weight * self.smoothed + (np.float32(1.0) - weight) * loss

    def get_config(self) -> dict:
        return {
            "patience": self.patience,
            "min_delta": self.min_delta,
            "smoothing": self.smoothing,
        }


class FixedPacing(Pacing):
    """Ends a stage after a fixed number of iterations, whatever the loss.

    Args:
        steps: iterations a stage, 1 <= steps < 2^24.

    Raises:
        ValueError: if `steps` is out of range.
    """

    def __init__(self, steps: int):
        self.steps = _check_iterations("steps", steps)
        super().__init__()

    def advance(self, loss: np.float32, iterations: int) -> str | None:
        self.counter += iterations
        if self.counter < self.steps:
            return None
        return f"its {self.counter} iterations are done"

    def get_config(self) -> dict:
        return {"steps": self.steps}


def _check_iterations(name: str, value: int) -> int:
    return check_integer(name, value, 1, _MOST_ITERATIONS, "float32 counts no further exactly")

"""NonFiniteGuard: how many losses in a row it tolerates, and what it says then."""

import math
import types

import numpy as np
import pytest

from keras_cdiff.training.nonfinite import NonFiniteGuard


def run(guard, losses, iteration=100):
    guard.set_model(
        types.SimpleNamespace(iteration=iteration, noise_interval=np.array([0.5, 80.0]))
    )
    guard.on_train_begin()
    guard.on_epoch_begin(0)
    for batch, loss in enumerate(losses):
        guard.on_train_batch_end(batch, {"batch_loss": loss})


def test_losses_that_recover_are_tolerated():
    run(NonFiniteGuard(2), [1.0, math.nan, math.inf, 1.0, math.nan, math.nan, 1.0])


@pytest.mark.parametrize("checkpoint", [None, 90])
def test_one_loss_too_many_ends_the_run(checkpoint):
    guard = NonFiniteGuard(2)
    guard.last_checkpoint = checkpoint
    with pytest.raises(FloatingPointError, match="3 steps in a row") as error:
        run(guard, [1.0, math.nan, math.nan, math.inf])
    expected = "step 90" if checkpoint else "none"
    assert f"last good checkpoint: {expected}." in str(error.value)
    assert "at iteration 104 with noise levels in [0.5, 80)" in str(error.value)


@pytest.mark.parametrize("value", [-1, 1.5])
def test_a_limit_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="Received: max_nonfinite="):
        NonFiniteGuard(value)

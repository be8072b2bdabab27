"""NonFiniteGuard: how many losses in a row it tolerates, and what it says then."""

import math
import types

import keras
import numpy as np
import pytest

from keras_cdiff import DiffusionModel, objectives, parameterizations, schedules
from keras_cdiff.model.guarded_optimizer import GuardedOptimizer
from keras_cdiff.training.callbacks import NonFiniteGuard
from keras_cdiff.training.checkpoint import CheckpointFolder


def run(guard, epochs, iteration=100, accumulated=None):
    """Shows it the losses of the steps of each epoch; None is a step that only moves nothing."""
    optimizer = types.SimpleNamespace(iterations=0, gradient_accumulation_steps=accumulated)
    guard.set_model(
        types.SimpleNamespace(
            iteration=iteration, noise_interval=np.array([0.5, 80.0]), optimizer=optimizer
        )
    )
    guard.on_train_begin()
    for number, losses in enumerate(epochs):
        guard.on_epoch_begin(number)
        for batch, loss in enumerate(losses):
            optimizer.iterations += loss is not None and math.isfinite(loss)
            logs = {"batch_loss": 1.0 if loss is None else loss}
            guard.on_train_batch_end(batch, logs)
        guard.on_epoch_end(number, logs)


def test_losses_that_recover_are_tolerated():
    run(NonFiniteGuard(2), [[1.0, math.nan, math.inf, 1.0, math.nan, math.nan, 1.0]])
    run(NonFiniteGuard(2), [[1.0, math.nan], [math.inf], [1.0, math.nan], [None, 1.0]])


@pytest.mark.parametrize("losses", [[[1.0, math.nan, math.nan, math.inf]], 3 * [[math.nan]]])
def test_one_loss_too_many_ends_the_run(losses, tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    for folder in (None, checkpoints):
        with pytest.raises(FloatingPointError, match="not finite in 3 steps in a row") as error:
            run(NonFiniteGuard(2, folder), losses, iteration=100)
        assert "last good checkpoint: none." in str(error.value)
    for step in (80, 90, 110):  # the last is of a later step, of a run that went further before
        checkpoints.save(step, {}, {})
    with pytest.raises(FloatingPointError) as error:
        run(NonFiniteGuard(2, checkpoints), losses)
    assert f"checkpoint: step 90 ({str(checkpoints.file(90))!r})." in str(error.value)
    at = 100 + sum(map(len, losses))
    assert f"at iteration {at} with noise levels in [0.5, 80)" in str(error.value)


def test_gradients_that_are_never_finite_end_the_run():
    tolerated = [[1.0, None, None, None], [1.0], 3 * [None], [1.0, None]]
    run(NonFiniteGuard(2), tolerated)
    with pytest.raises(FloatingPointError, match="gradient was not finite: 4 steps in a row"):
        run(NonFiniteGuard(2), [*tolerated, 4 * [None], [1.0]])
    # Accumulation by itself moves nothing for a while.
    run(NonFiniteGuard(0), 3 * [*(3 * [[None]]), [1.0]], accumulated=4)
    with pytest.raises(FloatingPointError, match="5 steps in a row"):
        run(NonFiniteGuard(0), [[1.0], *(5 * [[None]])], accumulated=4)


class Network(keras.Model):
    """A network of images (2, 2, 3) that compiles fast."""

    image_size, channels, out_channels, num_classes = 2, 3, 3, 0

    def __init__(self):
        super().__init__()
        self.mix = keras.layers.Dense(3)
        self.mix.build((None, 3))
        self.built = True

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        return self.mix(x)

    def get_config(self):
        return {}


def test_a_run_is_ended_from_within_fit(quick):
    model = DiffusionModel(
        Network(), schedules.EDM(), parameterizations.Epsilon(), objectives.LogNormalSigma()
    )
    model.compile(GuardedOptimizer(keras.optimizers.SGD(1e-3)), **quick)
    data = {"image": np.zeros((8, 2, 2, 3), "float32"), "noise": np.ones((8, 2, 2, 3), "float32")}

    def fit(noise):
        inputs = {**data, "noise": noise * data["noise"]}
        model.fit(inputs, batch_size=2, verbose=0, callbacks=[NonFiniteGuard(1)])

    fit(1.0)
    weights = model.backbone.get_weights()
    model.noise_interval.assign([0.5, 2.0])  # as a curriculum does
    where = r"at iteration 6 with noise levels in \[0.5, 2\)"
    with pytest.raises(FloatingPointError, match=f"2 steps in a row.*{where}"):
        fit(math.nan)
    # Only the gradient is too large: that shows when the epoch ends.
    with pytest.raises(FloatingPointError, match=r"4 steps in a row led to no.* iteration 10 "):
        fit(1e16)
    for received, expected in zip(model.backbone.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(received, expected)
    fit(1.0)


@pytest.mark.parametrize("value", [-1, 1.5])
def test_a_limit_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="Received: max_nonfinite="):
        NonFiniteGuard(value)

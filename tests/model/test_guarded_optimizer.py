"""GuardedOptimizer: steps that are not finite leave everything but the iteration as it was."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, ema, objectives, parameterizations, schedules
from keras_cdiff.model.guarded_optimizer import GuardedOptimizer
from keras_cdiff.model.tracking import accumulation_steps

ADAMW = {"learning_rate": 1e-2, "weight_decay": 0.1, "global_clipnorm": 1.0}
ROWS = np.array([0, 1, 2, 1])
SLOPES = np.array([[1.0, -2.0, 4.0, 0.5], [0.5, 1, -1, 2], [-4, 1, 2, 1], [1, 1, 0.5, -1]])


def loss(y, output):
    """Has the gradient y[:, :4], whatever the output."""
    return ops.sum(y[:, :4] * output, axis=1) + ops.sqrt(y[:, 4] + 0.0 * output[:, 0]) + y[:, 5]


def linear(optimizer, quick, dtype="float32"):
    """A compiled model whose outputs (B, 4) are rows of two tables of four rows and two columns."""
    row = keras.Input((), dtype="int32")
    tables = [keras.layers.Embedding(4, 2, dtype=dtype) for _ in range(2)]
    model = keras.Model(row, keras.layers.Concatenate(dtype=dtype)([t(row) for t in tables]))
    model.compile(optimizer, loss=loss, **quick)
    optimizer.build(model.trainable_variables)
    return model


def step(model, slopes=SLOPES, rows=ROWS, **last):
    """Trains on a batch of four; what is said of the last one may make it bad. Returns the loss."""
    y = np.column_stack([slopes, np.ones(4), np.zeros(4)]).astype("float32")
    for name, place in (("slope", slice(4)), ("root", 4), ("offset", 5)):
        y[-1, place] = last.get(name, y[-1, place])
    return model.fit(rows, y, batch_size=4, verbose=0).history["loss"][0]


def number(value):
    return float(ops.convert_to_numpy(value))


def state(*groups):
    """Copies of all variables but the loss scale and what counts for it."""
    own = ("seed", "dynamic_scale", "step_counter")
    variables = [v for group in groups for v in group if not any(word in v.path for word in own)]
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def assert_equal(received, expected, **tolerance):
    for value, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(value, other, **{"rtol": 0.0, **tolerance})


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_that_is_not_finite_is_skipped(scaled, quick):
    inner = keras.optimizers.AdamW(**ADAMW)
    if scaled:
        inner = keras.optimizers.LossScaleOptimizer(inner, initial_scale=256.0)
    model = linear(GuardedOptimizer(inner), quick)
    assert math.isfinite(step(model))
    before = state(model.weights, model.optimizer.variables)
    assert math.isnan(step(model, slope=math.nan))
    assert step(model, offset=math.inf) == math.inf  # with a gradient that is finite
    assert math.isfinite(step(model, root=0.0))  # the gradient is NaN
    assert math.isfinite(step(model, slope=1e25))  # only the norm of the gradient is infinite
    assert_equal(state(model.weights, model.optimizer.variables), before)
    if scaled:
        assert number(inner.dynamic_scale) == 256.0 / 2**4
    assert number(model.optimizer.iterations) == 1
    assert math.isfinite(step(model))
    assert number(model.optimizer.iterations) == 2
    assert all(np.any(w != old) for w, old in zip(state(model.weights), before, strict=False))


def test_finite_steps_are_those_of_the_inner_optimizer(quick):
    plain = linear(keras.optimizers.AdamW(**ADAMW), quick)
    guarded = linear(GuardedOptimizer(keras.optimizers.AdamW(**ADAMW)), quick)
    guarded.set_weights(plain.get_weights())
    # On TensorFlow Keras by itself goes wrong where a row is repeated.
    for model in (plain, guarded):
        step(model, rows=np.arange(4))
        step(model, SLOPES[::-1], rows=np.arange(4))
    assert_equal(guarded.get_weights(), plain.get_weights(), atol=1e-6)
    inner = guarded.optimizer.inner_optimizer
    assert_equal(state(inner.variables), state(plain.optimizer.variables), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("batches", [1, 2])
def test_updates_are_those_of_mean_clipped_gradients(batches, dtype, quick):
    """By the closed form: warm-up and decay count batches; decay of weights and clipping, of the
    mean of unscaled gradients, come once an update; a batch that was skipped leaves no trace.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=4, warmup_target=0.5, warmup_steps=2
    )
    inner = keras.optimizers.SGD(
        schedule,
        weight_decay=0.1,
        global_clipnorm=1.0,
        gradient_accumulation_steps=batches if batches > 1 else None,
    )
    if dtype == "mixed_float16":
        inner = keras.optimizers.LossScaleOptimizer(inner, 256.0, dynamic_growth_steps=3)
    # XLA on TensorFlow, too, as runs have it.
    options = {"jit_compile": True} if quick and batches > 1 else quick
    model = linear(GuardedOptimizer(inner), options, dtype)
    weights = np.concatenate(model.get_weights(), axis=1)
    scales = [1.0, -0.25, 0.125, 0.5, -1.0, 0.25]
    for first in range(0, 6, batches):
        taken = scales[first : first + batches]
        for scale in taken:
            step(model, slope=1e25)
            step(model, scale * SLOPES)
        gradient = np.zeros((4, 4))
        np.add.at(gradient, ROWS, np.mean(taken) * SLOPES / 4)
        gradient /= max(np.linalg.norm(gradient), 1.0)
        counted = first + batches - 1
        cosine = 0.5 * (1.0 + math.cos(math.pi * (counted - 2) / 4))
        rate = 0.5 * (counted / 2 if counted < 2 else cosine)
        weights = weights - rate * (0.1 * weights + gradient)
        assert number(model.optimizer.iterations) == first // batches + 1
        assert_equal(np.concatenate(model.get_weights(), axis=1), weights, atol=1e-6)
    if dtype == "mixed_float16":
        assert number(inner.dynamic_scale) == 256.0 / 2**6


@keras.saving.register_keras_serializable("guarded_optimizer_tests")
class Network(keras.Model):
    """A network of images (2, 2, 3) that compiles fast."""

    image_size, channels, out_channels, num_classes = 2, 3, 3, 3

    def __init__(self, dtype="float32"):
        super().__init__(dtype=dtype, autocast=False)
        self.mix = keras.layers.Dense(3, dtype=dtype)
        self.mix.build((None, 3))
        self.embedding = keras.layers.Embedding(4, 3, dtype=dtype)
        self.embedding.build()
        self.built = True

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        return ops.cast(self.mix(x) + self.embedding(label)[:, None, None, :], "float32")

    def get_config(self):
        return {"dtype": keras.saving.serialize_keras_object(self.dtype_policy)}


def batch(bad=None):
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(4, 2, 2, 3)).astype("float32")
    noise[1] = noise[1] if bad is None else bad
    return {
        "image": generator.uniform(-1, 1, noise.shape).astype("float32"),
        "label": np.array([1, 0, 1, 2]),
        "level": np.array([5.0, 90.0, 40.0, 20.0], "float32"),
        "noise": noise,
    }


@pytest.mark.parametrize(("dtype", "batches"), [("mixed_float16", 1), ("float32", 2)])
def test_averages_move_with_updates_alone(dtype, batches, quick):
    accumulation = batches if batches > 1 else None
    inner = keras.optimizers.AdamW(**ADAMW, gradient_accumulation_steps=accumulation)
    if dtype == "mixed_float16":
        inner = keras.optimizers.LossScaleOptimizer(inner, initial_scale=256.0)
    decay = ema.PowerDecay(0.1)
    model = DiffusionModel(
        Network(dtype),
        schedules.LinearBeta(100),
        parameterizations.Epsilon(),
        objectives.UniformTimesteps(100),
        ema=decay,
    )
    model.compile(GuardedOptimizer(inner), **quick)
    model.optimizer.build(model.trainable_variables)
    taken, weights, averages = 0, state(model.backbone.weights), state(model.ema_backbone.weights)
    for iteration, bad in enumerate([None, np.nan, 1e25, None, None, None], start=1):
        before = state(model.optimizer.variables)
        history = model.fit(batch(bad), batch_size=4, verbose=0)
        assert math.isfinite(history.history["batch_loss"][0]) == (bad is None)
        assert number(model.iteration) == iteration
        taken += bad is None
        if bad is None and taken % batches == 0:
            moved = state(model.backbone.weights)
            assert all(np.any(w != old) for w, old in zip(moved, weights, strict=True))
            rate = number(decay.rate(iteration // batches, 4 * batches))
            pairs = zip(averages, moved, strict=True)
            weights, averages = moved, [old + rate * (w - old) for old, w in pairs]
        if bad is not None:
            assert_equal(state(model.optimizer.variables), before)
        assert_equal(state(model.backbone.weights), weights)
        assert_equal(state(model.ema_backbone.weights), averages, atol=1e-6)
        assert number(model.optimizer.iterations) == taken // batches


def test_it_is_saved_with_what_it_guards():
    inner = keras.optimizers.AdamW(**ADAMW, gradient_accumulation_steps=3)
    optimizer = GuardedOptimizer(inner)
    optimizer.learning_rate = 0.25
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == optimizer.get_config()
    assert number(copy.learning_rate) == 0.25
    assert accumulation_steps(copy) == 3


@pytest.mark.parametrize("guarded", [False, True])
def test_what_cannot_be_guarded_is_refused(guarded):
    inner = GuardedOptimizer(keras.optimizers.SGD()) if guarded else "adam"
    with pytest.raises(ValueError, match="Received: inner_optimizer="):
        GuardedOptimizer(inner)

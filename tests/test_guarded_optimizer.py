"""GuardedOptimizer: steps that are not finite leave everything but the iteration as it was."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, backbones, ema, objectives, parameterizations, schedules
from keras_cdiff.guarded_optimizer import GuardedOptimizer, accumulation_steps

ADAMW = {"learning_rate": 1e-2, "weight_decay": 0.1}


def make(optimizer, dtype="float32"):
    keras.utils.set_random_seed(0)
    network = backbones.DiT(4, width=8, depth=1, num_heads=2, num_classes=3, dtype=dtype)
    model = DiffusionModel(
        network,
        schedules.LinearBeta(100),
        parameterizations.Epsilon(),
        objectives.UniformTimesteps(100),
        ema=ema.FixedDecay(0.5),
    )
    model.compile(optimizer)
    model.optimizer.build(model.trainable_variables)
    return model


def data(count):
    generator = np.random.default_rng(0)
    return {
        "image": generator.uniform(-1, 1, (count, 4, 4, 3)).astype("float32"),
        "label": generator.integers(0, 3, count),
        "level": generator.integers(1, 100, count).astype("float32"),
        "noise": generator.normal(size=(count, 4, 4, 3)).astype("float32"),
    }


def fit(model, inputs, batch_size):
    history = model.fit(inputs, batch_size=batch_size, shuffle=False, verbose=0)
    return history.history["batch_loss"][-1]


def state(model):
    networks = [*model.backbone.weights, *model.ema_backbone.weights]
    return [
        np.array(ops.convert_to_numpy(value))
        for value in (*networks, *model.optimizer.variables)
        if "seed" not in value.path
    ]


@pytest.mark.parametrize("half", [False, True])
def test_a_step_that_is_not_finite_is_skipped(half):
    inner = keras.optimizers.AdamW(**ADAMW)
    if half:
        inner = keras.optimizers.LossScaleOptimizer(inner, initial_scale=256.0)
    model = make(GuardedOptimizer(inner), "mixed_float16" if half else "float32")
    assert np.isfinite(fit(model, data(4), 4))
    before = state(model)
    for bad in (np.nan, 1e25):  # the latter: an infinite loss whose gradient may be finite
        inputs = data(4)
        inputs["noise"][1] = bad
        assert not np.isfinite(fit(model, inputs, 4))
    if half:
        assert ops.convert_to_numpy(inner.dynamic_scale) == 64.0
        inner.dynamic_scale.assign(256.0)
        inner.step_counter.assign(1)
    for value, expected in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert int(ops.convert_to_numpy(model.iteration)) == 3
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 1
    assert np.isfinite(fit(model, data(4), 4))
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 2
    moved = np.abs(ops.convert_to_numpy(model.ema_backbone.weights[-1]) - before[-1].mean())
    assert np.isfinite(moved).all()


def test_finite_steps_are_those_of_the_inner_optimizer():
    guarded = make(GuardedOptimizer(keras.optimizers.AdamW(**ADAMW)))
    plain = make(keras.optimizers.AdamW(**ADAMW))
    for model in (guarded, plain):
        fit(model, data(8), 4)
    for value, expected in zip(
        guarded.ema_backbone.get_weights(), plain.ema_backbone.get_weights(), strict=True
    ):
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_accumulated_batches_are_one_large_batch():
    options = {"learning_rate": 0.1, "momentum": 0.9, "global_clipnorm": 0.5}
    small = make(GuardedOptimizer(keras.optimizers.SGD(**options, gradient_accumulation_steps=2)))
    large = make(GuardedOptimizer(keras.optimizers.SGD(**options)))
    # A label that is dropped at random would differ between the two.
    inputs = data(8)
    del inputs["label"]
    for _ in range(2):
        fit(small, inputs, 4)
        fit(large, inputs, 8)
    assert int(ops.convert_to_numpy(small.iteration)) == 4
    for network in ("backbone", "ema_backbone"):
        for value, expected in zip(
            getattr(small, network).get_weights(),
            getattr(large, network).get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(value, expected, atol=1e-5)
    averages = [np.array(w) for w in small.ema_backbone.get_weights()]
    fit(small, {name: value[:4] for name, value in inputs.items()}, 4)
    for value, expected in zip(small.ema_backbone.get_weights(), averages, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_it_is_saved_with_what_it_guards():
    inner = keras.optimizers.AdamW(**ADAMW, global_clipnorm=1.0, gradient_accumulation_steps=3)
    optimizer = GuardedOptimizer(inner)
    optimizer.learning_rate = 0.25
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == optimizer.get_config()
    assert float(ops.convert_to_numpy(copy.learning_rate)) == 0.25
    assert accumulation_steps(copy) == 3


@pytest.mark.parametrize("guarded", [False, True])
def test_what_cannot_be_guarded_is_refused(guarded):
    inner = GuardedOptimizer(keras.optimizers.SGD()) if guarded else "adam"
    with pytest.raises(ValueError, match="Received: inner_optimizer="):
        GuardedOptimizer(inner)

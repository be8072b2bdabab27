"""A model's state, taken and given back: training goes on as if nothing had happened."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, objectives, parameterizations, schedules
from keras_cdiff.ema import FixedDecay, PowerDecay
from keras_cdiff.model.guarded_optimizer import GuardedOptimizer
from keras_cdiff.training.checkpoint import read_checkpoint, write_checkpoint
from keras_cdiff.training.model_state import restore, snapshot

OTHER = {"tensorflow": "jax", "jax": "torch", "torch": "jax"}


@keras.saving.register_keras_serializable("model_state_tests")
class Network(keras.Model):
    """A network of images (8, 8, 3) that compiles fast and has randomness of its own."""

    image_size, channels, out_channels, num_classes = 8, 3, 3, 3

    def __init__(self, width=4, dtype="float32"):
        super().__init__(dtype=dtype, autocast=False)
        self.width = width
        self.seed_generator = keras.random.SeedGenerator(0)
        self.embedding = keras.layers.Embedding(4, width, dtype=dtype)
        self.embedding.build()
        self.widen = keras.layers.Dense(width, dtype=dtype)
        self.widen.build((None, 3))
        self.mix = keras.layers.Dense(3, dtype=dtype)
        self.mix.build((None, width))
        self.built = True

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        hidden = self.widen(x) + self.embedding(label)[:, None, None, :]
        if training:
            hidden = hidden * ops.cast(
                keras.random.uniform((), seed=self.seed_generator), hidden.dtype
            )
        return ops.cast(self.mix(ops.tanh(hidden)), "float32")

    def get_config(self):
        dtype = keras.saving.serialize_keras_object(self.dtype_policy)
        return {"width": self.width, "dtype": dtype}


def small(dtype="float32", **network):
    return DiffusionModel(
        Network(dtype=dtype, **network),
        schedules.EDM(),
        parameterizations.EDMPreconditioning(0.5),
        objectives.LogNormalSigma(),
        ema=[FixedDecay(0.9), PowerDecay(0.1)],
    )


@pytest.fixture
def build(quick):
    """A function: whether in half precision -> a compiled model with a built optimizer."""

    def build(half=False, **network):
        model = small("mixed_float16" if half else "float32", **network)
        optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
        if half:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, 2.0**8, dynamic_growth_steps=2
            )
        model.compile(GuardedOptimizer(optimizer), **quick)
        model.optimizer.build(model.trainable_variables)
        return model

    return build


class TakeAt(keras.callbacks.Callback):
    """Snapshots after a batch, and copies of what was returned then."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.state = snapshot(self.model)
            self.copies = {name: array.copy() for name, array in self.state.items()}


def assert_same(received, expected, but=()):
    assert list(received) == list(expected)
    for name, array in expected.items():
        if not name.startswith(tuple(but)):
            np.testing.assert_array_equal(received[name], array, err_msg=name)


def train(model, batch, steps, callbacks=()):
    """Trains on batches of four, from where the model stands in the data.

    The noise is given, as JAX takes long to compile its drawing; noise levels are drawn.
    """
    first = int(ops.convert_to_numpy(model.iteration))
    image, label = (array[4 * first : 4 * (first + steps)] for array in batch)
    inputs = {"image": image, "label": label, "noise": image}
    arguments = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(inputs, callbacks=list(callbacks), **arguments)


# In single precision on one backend only, for the sake of time.
@pytest.mark.parametrize("half", [pytest.param(False, marks=pytest.mark.backend_free), True])
def test_training_goes_on_bit_for_bit(build, batch, half):
    through, taken = build(half), TakeAt(1)
    train(through, batch, 4, [taken])
    assert_same(taken.state, taken.copies)  # no step has overwritten them
    restored = build(half)
    restore(restored, taken.state)
    assert_same(snapshot(restored), taken.copies)
    train(restored, batch, 2)
    assert_same(taken.state, taken.copies)
    # The metrics began anew with the second fit.
    assert_same(snapshot(restored), snapshot(through), but=["metrics/"])
    state = snapshot(through)
    kernels = [name for name in state if name.startswith("backbone/") and name.endswith("kernel")]
    assert any((state[name] != taken.state[name]).any() for name in kernels)
    words = {name.split("/")[0]: set() for name in state}
    for name in state:
        words[name.split("/")[0]].add(name.split("/")[-1])
    assert list(words) == ["backbone", "average_0", "average_1", "model", "optimizer", "metrics"]
    assert {"noise_interval", "iteration", "curriculum_state"} <= words["model"]
    assert any("seed" in word for word in words["model"] | words["backbone"])
    assert {"iteration", "momentum", "velocity"} <= words["optimizer"]
    if half:
        (scale,) = (v for n, v in state.items() if n.startswith("optim") and n.endswith("scale"))
        assert scale != 2.0**8  # it has changed, and is part of the state


def test_what_does_not_fit_changes_nothing(build):
    model = build()
    state = before = snapshot(model)
    kernel = next(name for name in state if name.endswith("kernel"))
    wrong = {
        "shape": {**state, kernel: state[kernel][:1]},
        "is missing": {name: array for name, array in state.items() if name != kernel},
        "is unknown": {**state, "backbone/999/kernel": np.zeros(1)},
        "float64": {**state, kernel: state[kernel].astype("float64")},
        "int64": {**state, kernel: state[kernel].astype("int64")},
        "uint64": {**state, "model/002/iteration": np.array(2**63, "uint64")},
    }
    for message, arrays in wrong.items():
        zeros = {name: np.zeros_like(array) for name, array in state.items()}
        changed = {**arrays, **{n: zeros[n] for n in arrays if message == "shape" and n != kernel}}
        with pytest.raises(ValueError, match=f"Received: .* differences:\n.*{message}"):
            restore(model, changed)
    assert_same(snapshot(model), before)
    with pytest.raises(ValueError, match=r"Received: .*differences"):
        restore(build(width=5), state)
    for call in (snapshot, lambda model: restore(model, state)):
        with pytest.raises(ValueError, match="Received: optimizer=None"):
            call(small())


PROGRAM = """
import sys
sys.modules["tensorflow"] = None  # Keras would import it to write any configuration
import keras
from keras_cdiff import DiffusionModel
from keras_cdiff.training.checkpoint import read_checkpoint, write_checkpoint
from keras_cdiff.training.model_state import restore, snapshot
arrays, metadata = read_checkpoint(sys.argv[1])
for _ in range(2):  # the second has other numbers in Keras' names
    model = keras.saving.deserialize_keras_object(metadata)
    model.compile(keras.optimizers.AdamW(1e-3))
    model.optimizer.build(model.trainable_variables)
restore(model, arrays)
write_checkpoint(sys.argv[2], snapshot(model), {"backend": keras.backend.backend()})
"""


@pytest.mark.backend_free
def test_another_backend_takes_the_state(make_model, tmp_path):
    model = make_model(depth=1, average=[FixedDecay(0.9), PowerDecay(0.1)])
    model.compile(keras.optimizers.AdamW(1e-3))
    model.optimizer.build(model.trainable_variables)
    # Other values everywhere than those of a fresh model.
    state = {name: array + np.ones((), array.dtype) for name, array in snapshot(model).items()}
    there, back = tmp_path / "there.zip", tmp_path / "back.zip"
    write_checkpoint(there, state, keras.saving.serialize_keras_object(model))
    other = OTHER[keras.backend.backend()]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(there), str(back)],
        env={**os.environ, "KERAS_BACKEND": other},
        check=True,
    )
    arrays, metadata = read_checkpoint(back)
    assert metadata == {"backend": other}
    assert_same(arrays, state)
    restore(model, arrays)
    assert_same(snapshot(model), state)

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.common.batch_function import BatchFunction, fill, model_function


@pytest.fixture
def function():
    """Adds a dense layer's output to a scalar, and notes the shapes that it is traced with."""
    layer = keras.layers.Dense(2, kernel_initializer="ones")
    layer.build((None, 3))
    traced = []

    def add(batch):
        traced.append(tuple(batch["x"].shape))
        return {"sum": layer(batch["x"]) + batch["scale"]}

    network = keras.Sequential([layer])
    return BatchFunction(add, network), traced, network


def test_a_short_batch_is_filled_up_to_a_size_that_was_seen(function):
    run, traced, _ = function
    for count, most in ((4, None), (3, None), (2, 3), (4, None)):
        x = np.arange(3.0 * count, dtype=np.float32).reshape(count, 3)
        result = run({"x": x, "scale": np.float32(count)}, most)["sum"]
        np.testing.assert_allclose(result, np.repeat(x.sum(1)[:, None], 2, 1) + count)
    if keras.backend.backend() == "jax":  # others look at a batch more than once
        assert {shape[0] for shape in traced} == {4, 2}


def test_weights_that_change_are_seen(function):
    run, _, network = function
    batch = {"x": np.ones((1, 3), np.float32), "scale": np.float32(0)}
    before = run(batch)["sum"]
    network.set_weights([2 * weight for weight in network.get_weights()])
    np.testing.assert_allclose(run(batch)["sum"], 2 * before)


def test_tensors_are_taken_as_arrays_are(function):
    run, _, _ = function
    x = np.ones((2, 3), np.float32)
    expected = run({"x": x, "scale": np.float32(1)})["sum"]
    tensors = run({"x": ops.convert_to_tensor(x), "scale": np.float32(1)})["sum"]
    np.testing.assert_array_equal(tensors, expected)
    assert len(run._graphs) == 1


@pytest.mark.backend_free
def test_rows_are_filled_with_the_first():
    values = np.arange(4).reshape(2, 2)
    np.testing.assert_array_equal(fill(values, 4), [[0, 1], [2, 3], [0, 1], [0, 1]])
    assert fill(values, 2) is values


class Model:
    """What a `model_function` needs of a model."""

    jit_compile, run_eagerly = False, True

    def __init__(self, network):
        self._network = network

    def network(self, use_ema):
        return self._network


def scaled(model, batch, use_ema, scale):
    return (scale + use_ema) * model.network(use_ema)(batch)


def test_a_models_functions_are_made_once_and_live_as_long_as_it():
    model = Model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    x = np.ones((4, 3), "float32")
    function = model_function(model, scaled, False, 2.0)
    expected = 2 * np.asarray(ops.convert_to_numpy(model.network(False)(x)))
    np.testing.assert_allclose(function(x), expected, rtol=1e-5)
    assert model_function(model, scaled, False, 2.0) is function
    assert model_function(model, scaled, True, 2.0) is not function
    assert model_function(model, scaled, False, 3.0) is not function
    model.run_eagerly = False
    assert model_function(model, scaled, False, 2.0) is not function
    function, gone = None, weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None

"""Random numbers of replicas: those of the whole batch, cut into rows."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.distribution import replica


def drawn(draw, index=0, count=1, seed=3):
    """What a function draws as one of some replicas, with a generator of its own."""
    generator = keras.random.SeedGenerator(seed)
    with replica.acting_as(index, count):
        return ops.convert_to_numpy(draw(generator))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["uniform", "normal", "dropout"])
def test_rows_are_those_of_the_whole_batch(name, count):
    x = np.random.default_rng(0).normal(size=(6, 4, 2)).astype("float32")

    def draw_rows(rows):
        if name == "dropout":
            return lambda generator: replica.dropout(ops.convert_to_tensor(rows), 0.4, generator)
        return lambda generator: getattr(replica, name)(rows.shape, generator)

    whole = drawn(draw_rows(x))
    parts = [drawn(draw_rows(rows), i, count) for i, rows in enumerate(np.split(x, count))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)
    assert len(np.unique(whole)) > 6


def test_dropout_keeps_its_dtype_and_scale():
    x = ops.ones((4, 1000), dtype="bfloat16")
    kept = drawn(lambda generator: ops.cast(replica.dropout(x, 0.5, generator), "float32"), 1, 2)
    assert set(np.unique(kept)) == {0.0, 2.0}
    assert replica.dropout(x, 0.5, keras.random.SeedGenerator(0)).dtype == x.dtype


def test_the_whole_batch_is_the_rule():
    assert replica.replica() == (0, 1)
    with replica.acting_as(2, 4):
        assert replica.replica() == (2, 4)
    assert replica.replica() == (0, 1)

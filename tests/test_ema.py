"""Decay profiles of the moving average."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.ema import FixedDecay, WarmupDecay


def test_fixed_decay_is_the_same_at_every_step():
    decay = FixedDecay(0.99)
    for iteration in (1, 1000):
        value = ops.convert_to_numpy(decay(ops.convert_to_tensor(iteration), 32))
        np.testing.assert_allclose(value, 0.99, rtol=1e-6)


def test_warmup_follows_the_halflife_of_edm():
    # EDM: halflife = min(halflife, rampup * images seen), beta = 0.5^(batch / halflife).
    decay = WarmupDecay(halflife=500_000, rampup=0.05)
    for iteration in (1, 100, 50_000, 1_000_000):
        images = iteration * 512
        expected = 0.5 ** (512 / min(500_000, 0.05 * images))
        value = ops.convert_to_numpy(decay(ops.convert_to_tensor(iteration), 512))
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: FixedDecay(1.0), "decay=1.0"),
        (lambda: FixedDecay(-0.1), "decay=-0.1"),
        (lambda: WarmupDecay(halflife=0), "halflife=0"),
        (lambda: WarmupDecay(rampup=float("nan")), "rampup=nan"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        make()


def test_config_round_trip():
    for decay in (FixedDecay(0.5), WarmupDecay(1000.0, 0.1)):
        config = keras.saving.serialize_keras_object(decay)
        assert keras.saving.deserialize_keras_object(config).get_config() == decay.get_config()

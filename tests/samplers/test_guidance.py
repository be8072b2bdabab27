import math

import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import Guidance


def test_the_interval_is_half_open():
    guidance = Guidance(3.0, interval=(0.5, 2))
    assert [guidance.covers(level) for level in (0.4, 0.5, 1.9, 2.0)] == [False, True, True, False]
    levels = ops.convert_to_tensor(np.array([0.4, 0.5, 1.9, 2.0], "float32"))
    scales = guidance.scale_at(levels)
    assert ops.convert_to_numpy(scales).dtype == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(scales), [1.0, 3.0, 3.0, 1.0])


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_without_an_interval_all_levels_are_guided(dtype):
    level = ops.convert_to_tensor(7, dtype=dtype)
    assert float(Guidance(0.25).scale_at(level)) == 0.25
    assert Guidance(0.25).covers(7.0)


def test_infinite_ends():
    guidance = Guidance(2.0, interval=(1.0, math.inf))
    assert guidance.covers(1e30)
    assert not guidance.covers(0.5)


@pytest.mark.parametrize(
    "interval",
    [
        (1.0, 1.0),
        (2.0, 1.0),
        (float("nan"), 1.0),
        (0.0, float("nan")),
        (1.0,),
        (1, 2, 3),
        1.0,
        ("0", 1),
    ],
)
def test_bad_interval(interval):
    with pytest.raises(ValueError, match=r"`interval` must be two levels .*Received: interval="):
        Guidance(2.0, interval=interval)


@pytest.mark.parametrize("scale", ["2", None, [2.0], True])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match=r"guidance scale must be .*Received: scale="):
        Guidance(scale)


@pytest.mark.parametrize("channels", [0, 1.5, "3"])
def test_bad_channels(channels):
    with pytest.raises(ValueError, match=r"`channels` must be .*Received: channels="):
        Guidance(2.0, channels=channels)

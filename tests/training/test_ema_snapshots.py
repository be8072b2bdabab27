"""Snapshots of power-function averages, and averages of other widths made from them."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.ema import FixedDecay, PowerDecay
from keras_cdiff.training.ema_snapshots import EMASnapshots, read_snapshots, reconstruct_average


def weights_of(network):
    return [ops.convert_to_numpy(w) for w in network.weights]


def distance(a, b):
    difference = [np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)]
    return np.sqrt(sum(difference) / sum(np.sum(y**2) for y in b))


def test_average_of_a_width_that_was_not_stored(make_model, batch, quick, tmp_path):
    model = make_model(average=[PowerDecay(0.1), PowerDecay(0.2), FixedDecay(0.5)])
    model.compile(keras.optimizers.SGD(1e-2), **quick)
    data = tuple(array[:12] for array in batch)
    for _ in range(2):  # the second fit goes on
        callbacks = [EMASnapshots(tmp_path / "snapshots", every=5)]
        model.fit(*data, batch_size=1, verbose=0, callbacks=callbacks)
    snapshots = read_snapshots(tmp_path / "snapshots")
    times = [5, 10, 12, 15, 20, 24]
    assert [(s.iteration, s.width) for s in snapshots] == [
        (t, w) for t in times for w in (0.1, 0.2)
    ]
    for (_, network), snapshot in zip(model.averages()[:2], snapshots[-2:], strict=True):
        for weight, stored in zip(weights_of(network), snapshot.weights.values(), strict=True):
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(weight, stored)

    # A second model with the same names of layers but other numbers and weights.
    other = make_model(average=FixedDecay(0.9))
    narrow, wide = (weights_of(network) for _, network in model.averages()[:2])
    for width, expected in ((0.1, narrow), (0.2, wide)):
        reconstruct_average(other, tmp_path / "snapshots", width)
        assert distance(weights_of(other.ema_backbone), expected) < 1e-4
    reconstruct_average(other, tmp_path / "snapshots", 0.14)
    between = weights_of(other.ema_backbone)
    apart = distance(narrow, wide)
    assert 0.1 * apart < distance(between, wide) < apart
    assert 0.1 * apart < distance(between, narrow) < apart


def test_what_does_not_fit_is_named(make_model, tmp_path):
    model, power = make_model(), make_model(depth=1, average=PowerDecay(0.1))

    def fails(call, received):
        with pytest.raises(ValueError, match=f"Received: .*{received}"):
            call()

    fails(lambda: EMASnapshots(tmp_path, every=0), "every=0")
    callback = EMASnapshots(tmp_path, every=1)
    callback.set_model(model)
    fails(callback.on_train_begin, "ema=<")
    fails(lambda: read_snapshots(tmp_path), "folder=")
    callback.set_model(power)
    callback.on_train_begin()
    power.iteration.assign(3)
    callback.on_epoch_begin(0)
    callback.on_train_batch_end(2)
    callback.on_train_end()
    assert [path.name for path in tmp_path.iterdir()] == ["ema_00000003_0.1.npz"]
    reconstruct_average(power, tmp_path, 0.1)
    fails(lambda: reconstruct_average(make_model(average=None), tmp_path, 0.1), "ema=None")
    for network in ({"width": 32}, {"depth": 2}, {"depth": 1, "num_classes": 0}):
        other = make_model(average=PowerDecay(0.1), **network)
        fails(lambda other=other: reconstruct_average(other, tmp_path, 0.1), "first difference at")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    fails(lambda: read_snapshots(tmp_path), "ema_00000003_0.1.npz")


def test_a_folder_holds_one_training_and_every_width(make_model, tmp_path):
    widths = (0.1, 0.10000001)
    model = make_model(average=[PowerDecay(width) for width in widths])
    callback = EMASnapshots(tmp_path, every=1)
    callback.set_model(model)
    callback.on_train_begin()
    model.iteration.assign(3)
    callback.on_epoch_begin(0)
    callback.on_train_batch_end(2)
    assert [snapshot.width for snapshot in read_snapshots(tmp_path)] == list(widths)
    callback.on_train_begin()  # goes on
    model.iteration.assign(2)  # another training, or an earlier state of this one
    with pytest.raises(ValueError, match=r"ema_00000003_0.1.npz on.*another folder.*Received: fol"):
        callback.on_train_begin()

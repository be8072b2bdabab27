"""Both families of networks train in half precision as they do in single.

The networks are as small as they can be: half precision is emulated on a CPU.
"""

import functools

import keras
import numpy as np
import pytest

from keras_cdiff import DiffusionModel, backbones, ema, objectives, parameterizations, schedules

STEPS = 60


def dit(dtype):
    network = backbones.DiT(8, width=32, depth=1, num_heads=2, num_classes=3, dtype=dtype)
    schedule, objective = schedules.LinearBeta(100), objectives.UniformTimesteps(100)
    return network, schedule, parameterizations.Epsilon(), objective


def edm(dtype):
    network = backbones.SongUNet(
        8,
        num_classes=3,
        width=8,
        channel_multipliers=(1,),
        num_blocks=1,
        attention_resolutions=(),
        dtype=dtype,
    )
    preconditioning = parameterizations.EDMPreconditioning()
    return network, schedules.EDM(), preconditioning, objectives.LogNormalSigma()


def adam():
    return keras.optimizers.Adam(4e-3)


def descent():
    return keras.optimizers.SGD(0.05, momentum=0.9)


class Losses(keras.callbacks.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["batch_loss"]))


def losses(make, optimizer, policy, batch, quick):
    keras.utils.set_random_seed(0)
    model = DiffusionModel(*make(policy), ema=ema.FixedDecay(0.9))
    optimizer = optimizer()
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, **quick)
    recorded = Losses()
    images, labels = (np.concatenate([array[:8]] * STEPS) for array in batch)
    model.fit(images, labels, batch_size=8, verbose=0, shuffle=False, callbacks=[recorded])
    weights = [
        np.asarray(w) for w in (*model.backbone.get_weights(), *model.ema_backbone.get_weights())
    ]
    assert all(np.isfinite(w).all() for w in weights)
    return np.array(recorded.values)


@pytest.fixture(scope="module")
def single(batch, quick):
    """A function: as `losses`, in single precision."""
    return functools.cache(lambda *run: losses(*run, "float32", batch, quick))


@pytest.mark.parametrize(
    ("make", "optimizer", "policy"),
    [
        (dit, adam, "mixed_bfloat16"),
        (dit, adam, "mixed_float16"),
        # In test_unet_models.py a U-Net takes steps in bfloat16 on each backend.
        pytest.param(edm, descent, "mixed_float16", marks=pytest.mark.one_backend),
        pytest.param(edm, descent, "mixed_bfloat16", marks=pytest.mark.one_backend),
    ],
)
def test_half_precision_reaches_the_loss_of_single(make, optimizer, policy, single, batch, quick):
    expected = single(make, optimizer)
    assert np.mean(expected[-20:]) < 0.8 * np.mean(expected[:5])
    half = losses(make, optimizer, policy, batch, quick)
    assert len(half) == STEPS
    assert np.isfinite(half).all()
    # The same noise and levels were drawn, so the curves may be compared step by step.
    ratio = np.mean(half[-20:]) / np.mean(expected[-20:])
    assert ratio == pytest.approx(1.0, abs=0.05)

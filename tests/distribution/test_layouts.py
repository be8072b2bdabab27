"""Model parallelism: what lies where, and that training is the same as on one device."""

import json
import os

import forked
import keras
import pytest

from keras_cdiff.distribution import layout_map

# Prints, of each network, [path, elements, bytes, bytes on one device] of the arrays of weights,
# average and optimizer; and, of those in its arguments, how far training is from one device's.
PROGRAM = """
import json
import sys
import keras
import numpy as np
from keras_cdiff import DiffusionModel, backbones, ema, objectives, parameterizations, schedules
from keras_cdiff.distribution.layouts import layout_map
from keras_cdiff.model.guarded_optimizer import GuardedOptimizer

rng = np.random.default_rng(0)
images = rng.uniform(-1, 1, (24, 8, 8, 3)).astype("float32")
conditions = {"dit": {"context": rng.normal(size=(24, 5, 12)).astype("float32")}, "song": {}}
common = {"image_size": 8, "num_classes": 3}
unet = {"width": 16, "num_blocks": 1, "augment_features": 9, **common}
networks = {
    "dit": lambda: backbones.DiT(width=32, depth=1, num_heads=2, context_width=12, **common),
    "song": lambda: backbones.SongUNet(
        channel_multipliers=(1,), attention_resolutions=(8,), **unet
    ),
    "dhariwal": lambda: backbones.DhariwalUNet(
        channel_multipliers=(1, 4), attention_resolutions=(4,), **unet
    ),
}

def make_model(name):
    keras.utils.set_random_seed(0)
    parts = schedules.EDM(), parameterizations.EDMPreconditioning(), objectives.LogNormalSigma()
    model = DiffusionModel(networks[name](), *parts, ema=ema.FixedDecay(0.5))
    # The epsilon, because Adam would make large steps of what is only a gradient's rounding error.
    optimizer = keras.optimizers.AdamW(1e-3, epsilon=1e-3)
    model.compile(GuardedOptimizer(optimizer))
    model.optimizer.build(model.trainable_variables)
    return model

def train(model, name):
    draws = np.random.default_rng(1)
    for weight in model.backbone.trainable_weights:  # zero-initialised layers hide gradients
        weight.assign(np.array(weight) + 0.05 * draws.normal(size=weight.shape))
    start = model.backbone.get_weights()
    losses = []
    keep = lambda step, logs: losses.append(float(logs["batch_loss"]))
    model.fit(
        {"image": images, "label": np.arange(24) % 3, **conditions[name]},
        batch_size=8,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=keep)],
    )
    changes = [
        (after - before).ravel()
        for network in (model.backbone, model.ema_backbone)
        for after, before in zip(network.get_weights(), start)
    ]
    return np.array(losses), np.concatenate(changes)

def arrays(model):
    parts = {"weights": model.backbone, "average": model.ema_backbone, "optimizer": model.optimizer}
    return {
        part: [
            [v.path, v.value.size, v.value.nbytes, v.value.addressable_shards[0].data.nbytes]
            for v in owner.variables
        ]
        for part, owner in parts.items()
    }

mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"])
parallel = keras.distribution.ModelParallel(
    layout_map=layout_map(mesh), batch_dim_name="batch", auto_shard_dataset=False
)
results = {}
for name in networks:
    with parallel.scope():
        model = make_model(name)
        results[name] = {"new": arrays(model)}
        if name in sys.argv:
            losses, changes = train(model, name)
            results[name]["trained"] = arrays(model)
    if name in sys.argv:
        expected_losses, expected_changes = train(make_model(name), name)
        error = np.linalg.norm(changes - expected_changes) / np.linalg.norm(expected_changes)
        results[name]["weights"] = float(error)
        results[name]["losses"] = float(np.abs(losses / expected_losses - 1).max())
        results[name]["steps"] = len(losses)
print(json.dumps(results))
"""


def mesh(*axes):
    return keras.distribution.DeviceMesh((1,) * len(axes), axes, devices=["cpu:0"])


@pytest.fixture(scope="module", params=["dit", pytest.param("song", marks=pytest.mark.exhaustive)])
def trained(request):
    """The network that is trained."""
    return request.param


@pytest.fixture(scope="module")
def results(trained, tmp_path_factory):
    """What the program prints, of eight virtual devices: two times four that share a model."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "program.py").write_text(PROGRAM)
    process = forked.run(
        [folder / "program.py", trained], folder, {**os.environ, "XLA_FLAGS": flags}
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


if keras.backend.backend() == "jax":

    @pytest.mark.parametrize("part", ["weights", "average", "optimizer"])
    @pytest.mark.parametrize("name", ["dit", "song", "dhariwal"])
    def test_large_arrays_are_split(results, name, part):
        for when in {"new", "trained"} & set(results[name]):
            rows = results[name][when][part]
            large = [row for row in rows if row[1] > 1000]
            assert large
            assert not [path for path, _, total, one in large if 4 * one != total]
            assert sum(row[3] for row in rows) < 0.35 * sum(row[2] for row in rows)

    def test_training_is_that_of_one_device(results, trained):
        assert results[trained]["steps"] == 3
        assert results[trained]["losses"] < 1e-5
        assert results[trained]["weights"] < 1e-5

    def test_mesh_needs_an_axis_for_the_model():
        with pytest.raises(
            ValueError, match=r"axis called \"model\".*axis_names=\['batch', 'data'\]"
        ):
            layout_map(mesh("batch", "data"))

else:

    def test_other_backends_cannot():
        with pytest.raises(ValueError, match=r"only on JAX.*backend="):
            layout_map(mesh("batch", "model"))

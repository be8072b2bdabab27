"""The three backends agree: same weights, levels and noise give the same loss and the same step."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.backend_free

# Both programs build their models with it.
MODEL = """
import sys
import keras
import numpy as np
from keras_cdiff import DiffusionModel, backbones, ema, objectives, parameterizations, schedules

def make_model(kind):
    size = dict(image_size=8, width=16, depth=2, num_heads=2, num_classes=3, label_dropout=0.0)
    if kind == "edm":
        parts = schedules.EDM(), parameterizations.EDMPreconditioning(), objectives.LogNormalSigma()
    else:
        size["out_channels"] = 6
        learned = parameterizations.Epsilon(learned_variance=True)
        parts = schedules.LinearBeta(100), learned, objectives.UniformTimesteps(100)
    return DiffusionModel(backbones.DiT(**size), *parts, ema=ema.FixedDecay(0.5))

"""

# Trains one step of plain gradient descent on given levels and noise, and saves what came of it.
PROGRAM = """
folder, backend = sys.argv[1:]
data = dict(np.load(f"{folder}/data.npz"))
results = {}
for kind in ("edm", "ddpm"):
    model = make_model(kind)
    model.load_weights(f"{folder}/{kind}.weights.h5")
    for name in ("default", "eager"):
        start, before = model.get_weights(), model.backbone.get_weights()
        model.compile(keras.optimizers.SGD(1.0), run_eagerly=name == "eager")
        batch = {k: data[k] for k in ("image", "label", "noise")} | {"level": data[kind]}
        history = model.fit(batch, batch_size=6, verbose=0, shuffle=False).history
        results[f"{kind}/{name}/loss"] = history["loss"][0]
        for i, (weight, old) in enumerate(zip(model.backbone.get_weights(), before)):
            results[f"{kind}/{name}/{i:03d}"] = weight - old
        model.set_weights(start)
np.savez(f"{folder}/{backend}.npz", **results)
"""

MAKE = """
folder = sys.argv[1]
rng = np.random.default_rng(0)
image = np.tanh(rng.normal(size=(6, 8, 8, 3))).astype("float32")
np.savez(
    f"{folder}/data.npz",
    image=image,
    noise=rng.normal(size=image.shape).astype("float32"),
    label=rng.integers(0, 3, 6).astype("int32"),
    edm=np.float32([0.01, 0.1, 0.5, 1.0, 5.0, 40.0]),
    ddpm=np.float32([1, 7, 20, 50, 80, 99]),
)
for kind in ("edm", "ddpm"):
    model = make_model(kind)
    for weight in model.backbone.trainable_weights:  # zero-initialised layers hide gradients
        weight.assign(np.array(weight) + 0.05 * rng.normal(size=weight.shape))
    model.save_weights(f"{folder}/{kind}.weights.h5")
"""


def run(program, backend, *arguments):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", MODEL + program, *arguments], env=environment, check=True)


def test_loss_and_gradient_step_agree(tmp_path):
    run(MAKE, "jax", str(tmp_path))
    results = {}
    for backend in ("tensorflow", "jax", "torch"):
        run(PROGRAM, backend, str(tmp_path), backend)
        results[backend] = dict(np.load(tmp_path / f"{backend}.npz"))
    reference = results["torch"]
    assert any(name.endswith("loss") for name in reference)
    worst = {}
    for backend in ("tensorflow", "jax"):
        assert results[backend].keys() == reference.keys()
        for kind in ("edm", "ddpm"):
            for mode in ("default", "eager"):
                names = [n for n in reference if n.startswith(f"{kind}/{mode}/0")]
                ours, theirs = (
                    np.concatenate([r[n].ravel() for n in names])
                    for r in (results[backend], reference)
                )
                assert np.linalg.norm(theirs) > 0
                error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
                loss = f"{kind}/{mode}/loss"
                difference = abs(results[backend][loss] / reference[loss] - 1)
                worst[f"{backend} {kind} {mode}"] = [float(error), float(difference)]
    assert max(max(pair) for pair in worst.values()) < 1e-5, json.dumps(worst, indent=1)

"""The backends agree: the same weights, levels and noise give the same loss and the same step.

The reference is golden/gradient_step.npz. `python tests/test_backends.py` writes it anew, on the
backend at hand; PyTorch's is there.
"""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_cdiff import DiffusionModel, backbones, objectives, parameterizations, schedules

FILE = Path(__file__).parent / "golden" / "gradient_step.npz"
KINDS = ("edm", "ddpm")


def make_model(kind):
    size = {"image_size": 8, "width": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    if kind == "edm":
        parts = schedules.EDM(), parameterizations.EDMPreconditioning(), objectives.LogNormalSigma()
    else:
        size["out_channels"] = 6
        learned = parameterizations.Epsilon(learned_variance=True)
        parts = schedules.LinearBeta(100), learned, objectives.UniformTimesteps(100)
    return DiffusionModel(backbones.DiT(**size, label_dropout=0.0), *parts, ema=None)


def take_step(model, data, kind, **options):
    """Returns the loss of a batch, and what a step of plain gradient descent adds to the weights.

    Args:
        options: of `compile`.
    """
    weights = model.backbone.trainable_weights
    for number, weight in enumerate(weights):
        weight.assign(data[f"{kind}/weights/{number:02}"])
    model.compile(keras.optimizers.SGD(1.0), **options)
    batch = {name: data[name] for name in ("image", "label", "noise")} | {"level": data[kind]}
    loss = model.fit(batch, batch_size=6, verbose=0, shuffle=False).history["loss"][0]
    changes = [
        keras.ops.convert_to_numpy(weight) - data[f"{kind}/weights/{number:02}"]
        for number, weight in enumerate(weights)
    ]
    return loss, np.concatenate([change.ravel() for change in changes])


@pytest.fixture(scope="module")
def data():
    with np.load(FILE) as file:
        return dict(file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "run_eagerly",
    [False, pytest.param(True, marks=pytest.mark.exhaustive)],
    ids=["compiled", "eager"],
)
def test_loss_and_gradient_step_agree(data, kind, run_eagerly):
    loss, changes = take_step(make_model(kind), data, kind, run_eagerly=run_eagerly)
    assert loss == pytest.approx(data[f"{kind}/loss"], rel=1e-5)
    expected = data[f"{kind}/changes"]
    assert np.linalg.norm(changes - expected) < 1e-5 * np.linalg.norm(expected)


def write_reference():
    rng = np.random.default_rng(0)
    image = np.tanh(rng.normal(size=(6, 8, 8, 3))).astype("float32")
    data = {
        "image": image,
        "noise": rng.normal(size=image.shape).astype("float32"),
        "label": rng.integers(0, 3, 6).astype("int32"),
        "edm": np.float32([0.01, 0.1, 0.5, 1.0, 5.0, 40.0]),
        "ddpm": np.float32([1, 7, 20, 50, 80, 99]),
    }
    keras.utils.set_random_seed(0)
    for kind in KINDS:
        model = make_model(kind)
        for number, weight in enumerate(model.backbone.trainable_weights):
            # Zero-initialised layers hide gradients.
            value = keras.ops.convert_to_numpy(weight) + 0.05 * rng.normal(size=weight.shape)
            data[f"{kind}/weights/{number:02}"] = value.astype("float32")
        data[f"{kind}/loss"], data[f"{kind}/changes"] = take_step(model, data, kind)
    np.savez_compressed(FILE, **data)


if __name__ == "__main__":
    write_reference()

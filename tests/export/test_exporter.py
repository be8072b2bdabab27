"""Exported samplers against sampling in this process; what they refuse; what lies beside them."""

import json

import keras
import numpy as np
import pytest

from keras_cdiff import export_sampler, samplers
from keras_cdiff.evaluation.image_sets import weights_digest
from keras_cdiff.export.bundle import run_with_tensorflow, write_bundle
from keras_cdiff.export.exporter import _request
from keras_cdiff.samplers import Guidance, sample
from keras_cdiff.samplers.sample import _noise


@pytest.fixture(scope="module")
def load():
    """A function: a folder -> its signatures."""
    tensorflow = pytest.importorskip("tensorflow")
    return lambda path: tensorflow.saved_model.load(str(path)).signatures


MODELS = ("dit", "edm")
SAMPLERS = {
    "ddim": samplers.DDIM(4),
    "heun": samplers.Heun(3),
    "dpm_solver": samplers.DPMSolver(4),
    "ddpm": samplers.DDPM(3),
}
CASES = [(model, name) for model in MODELS for name in ("ddim", "heun", "dpm_solver")]
CASES.append(("dit", "ddpm"))
GUIDED = Guidance(2.0, interval=(0.0, 50.0))

EXPORT_BUNDLES = """
import pathlib, sys
from keras_cdiff.evaluation.image_sets import weights_digest
from keras_cdiff.export.bundle import read_bundle
from keras_cdiff.export.writer import write_export
for folder in map(pathlib.Path, sys.argv[1:]):
    write_export(*read_bundle(folder / "bundle"), folder / "model")
"""


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory, load):
    """By model and sampler: the model, the sampler, the folder and its signatures.

    Elsewhere than on TensorFlow a process writes each of them; here one writes most, since it takes
    long to start.
    """
    folders, left = {case: tmp_path_factory.mktemp("export") for case in CASES}, []
    for (kind, name), folder in folders.items():
        model, sampler, options = models[kind], SAMPLERS[name], {"description": {"data": "mine"}}
        if keras.backend.backend() == "tensorflow" or (kind, name) == CASES[0]:
            export_sampler(model, folder / "model", sampler, guidance=GUIDED, **options)
        else:
            options |= {"weights": "average", "format": "saved_model", "jit_compile": False}
            write_bundle(model, _request(model, sampler, GUIDED, **options), folder / "bundle")
            left.append(folder)
    if left:
        run_with_tensorflow("-c", EXPORT_BUNDLES, *map(str, left))
    return {
        (kind, name): (models[kind], SAMPLERS[name], folder / "model", load(folder / "model"))
        for (kind, name), folder in folders.items()
    }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_it_samples_as_this_process_does(exported, case):
    model, sampler, _, signatures = exported[case]
    seeds, labels = [3, 5], np.array([1, 2], "int32")
    draw = _noise(seeds, 2, model.image_shape)
    noise = draw()
    if sampler.needs_noise:  # the last step takes some too, at no weight
        noise = np.stack([noise, *(draw() for _ in range(sampler.num_steps))], axis=1)
    for scale in (1.0, 2.0):
        guidance = Guidance(scale, interval=GUIDED.interval)
        expected = sample(
            model, 2, sampler, seed=seeds, label=labels, guidance=guidance, progress=False
        )
        got = signatures["sample_from_noise"](
            noise=noise, label=labels, guidance=np.float32(scale)
        )["images"]
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_it_denoises_as_this_process_does(exported):
    model, *_, signatures = exported["dit", "ddim"]
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    level, label = np.array([5.0, 45.0, 90.0], "float32"), np.array([0, 1, 3], "int32")
    got = signatures["denoise"](x=x, level=level, label=label, guidance=np.float32(2.0))["clean"]
    for i, scale in enumerate((2.0, 2.0, 1.0)):  # the interval of guidance ends at 50
        part = slice(i, i + 1)
        guidance = np.float32(scale) if scale != 1.0 else 1.0
        expected = keras.ops.convert_to_numpy(
            model.denoise(x[part], level[part], label[part], guidance=guidance, use_ema=True)
        )
        np.testing.assert_allclose(got[part], expected, rtol=1e-4, atol=1e-4)


def test_a_sample_depends_on_its_own_seed_alone(exported):
    *_, signatures = exported["dit", "ddim"]
    seeds, labels = np.arange(16, dtype="int64"), (np.arange(16) % 4).astype("int32")
    guidance = np.float32(1.5)
    together = signatures["sample"](seeds=seeds, label=labels, guidance=guidance)["images"].numpy()
    assert together.dtype == np.uint8
    assert together.shape == (16, 8, 8, 3)
    alone = signatures["sample"](seeds=seeds[5:6], label=labels[5:6], guidance=guidance)
    assert np.abs(alone["images"].numpy().astype(int) - together[5:6]).max() <= 1
    again = signatures["sample"](seeds=seeds, label=labels, guidance=guidance)["images"].numpy()
    np.testing.assert_array_equal(again, together)
    assert np.abs(together[0].astype(int) - together[4]).max() > 1  # of one class, two seeds


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"seeds": [-1]}, "seeds must be integers >= 0"),
        ({"label": [4]}, r"label must lie in 0..3 \(3 is the null label\)"),
        ({"label": [-1]}, "label must lie in 0..3"),
        ({"label": [0, 1]}, "label must have one entry a sample"),
        ({"guidance": -0.5}, "guidance must be a finite number >= 0"),
        ({"guidance": float("nan")}, "guidance must be a finite number >= 0"),
        ({"seeds": [], "label": []}, "at least one sample must be asked for"),
    ],
)
def test_bad_requests_are_refused(exported, request_, message):
    import tensorflow as tf

    *_, signatures = exported["dit", "ddim"]
    inputs = {"seeds": [1], "label": [0], "guidance": 1.0, **request_}
    dtypes = {"seeds": tf.int64, "label": tf.int32, "guidance": tf.float32}
    tensors = {name: tf.constant(value, dtypes[name]) for name, value in inputs.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["sample"](**tensors)


def test_requests_of_another_shape_or_dtype_are_refused(exported):
    import tensorflow as tf

    *_, signatures = exported["dit", "ddim"]
    noise, label, guidance = np.zeros((1, 8, 8, 3), "float32"), np.array([0], "int32"), 1.0
    served = signatures["sample_from_noise"]
    with pytest.raises(TypeError, match=r"Can not cast .*shape=\(1, 4, 8, 3\)"):
        served(noise=noise[:, :4], label=label, guidance=np.float32(guidance))
    with pytest.raises(TypeError, match=r"Can not cast .*float64"):
        served(noise=tf.constant(noise, tf.float64), label=label, guidance=np.float32(guidance))
    with pytest.raises(tf.errors.InvalidArgumentError, match="noise must hold finite numbers"):
        served(noise=noise * np.nan, label=label, guidance=np.float32(guidance))
    level = np.array([101.0], "float32")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"level must lie in \[0, 100\]"):
        signatures["denoise"](x=noise, level=level, label=label, guidance=np.float32(guidance))


def test_a_model_card_and_metadata_lie_beside_it(exported):
    model, _, path, _ = exported["dit", "ddim"]
    metadata = json.loads((path / "assets.extra" / "metadata.json").read_text())
    assert metadata["iterations"] == 12
    assert metadata["weights"] == "average"
    assert metadata["sampler"]["class_name"] == "DDIM"
    assert metadata["weights_sha256"] == weights_digest(model.ema_backbone)
    assert metadata["exported_from"] == keras.backend.backend()
    assert metadata["signatures"]["sample"] == {
        "inputs": {
            "seeds": {"dtype": "int64", "shape": [None]},
            "label": {"dtype": "int32", "shape": [None]},
            "guidance": {"dtype": "float32", "shape": []},
        },
        "outputs": {"images": {"dtype": "uint8", "shape": [None, 8, 8, 3]}},
    }
    assert metadata["value_ranges"]["label"] == [0, 3]
    assert metadata["value_ranges"]["level"] == [0, 100]
    card = (path / "assets.extra" / "model_card.md").read_text()
    for line in ("- Data: mine", "- Sampler: DDIM, 4 steps", "- Training steps: 12"):
        assert line in card.splitlines()
    assert "guidance=tf.constant(2.0)" in card
    assert not list(path.parent.glob("writing-*"))


def test_what_cannot_be_exported_is_refused(models, make_model, tmp_path):
    model = models["dit"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"new or an empty folder.*full"):
        export_sampler(model, tmp_path / "full")
    new = tmp_path / "new"
    for message, refused, options in (
        ("Received: a model of 4 channels", make_model("ddpm", channels=4), {}),
        ("sampler='leapfrog'", model, {"sampler": "leapfrog"}),
        ("Received: format='pickle'", model, {"format": "pickle"}),
        (
            "SavedModel alone.*jit_compile=True, format='onnx'",
            model,
            {"jit_compile": True, "format": "onnx"},
        ),
        (
            "hold at least one of the sampler's levels",
            model,
            {"guidance": Guidance(1, None, (200, 300))},
        ),
        ("Guidance strengthens a condition", make_model("ddpm", num_classes=0), {"guidance": 2.0}),
        ("never saw in training", make_model("ddpm", label_dropout=0.0), {"guidance": 2.0}),
        ("predicts no variance", model, {"sampler": samplers.DDPM(2, "learned")}),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            export_sampler(refused, new, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]  # nothing is half written

"""Exported samplers against sampling in this process; what they refuse; what lies beside them."""

import json

import keras
import numpy as np
import pytest

from keras_cdiff import DiffusionModel, export_sampler, samplers
from keras_cdiff.samplers import Guidance, sample
from keras_cdiff.samplers.sample import _noise


@pytest.fixture(scope="module")
def load():
    """A function: a folder -> its signatures."""
    tensorflow = pytest.importorskip("tensorflow")
    return lambda path: tensorflow.saved_model.load(str(path)).signatures


def randomise(model):
    """Gives the raw and the averaged network weights of their own that make them answer."""
    generator = np.random.default_rng(0)
    for network in (model.backbone, model.ema_backbone):
        for weight in network.weights:
            if "kernel" in weight.path or "embeddings" in weight.path:
                weight.assign(0.1 * generator.normal(size=weight.shape))
    model.iteration.assign(12)
    return model


@pytest.fixture(scope="module")
def make(make_model):
    """A function: "ddpm", "edm" or "song" -> a model whose networks answer."""

    def build(kind):
        keras.utils.set_random_seed(0)
        if kind == "song":
            small = {"image_size": 8, "width": 8, "num_blocks": 1, "num_classes": 3}
            return randomise(DiffusionModel.from_preset("edm_emoji16", **small))
        return randomise(make_model(kind))

    return build


CASES = {
    "ddim": ("ddpm", samplers.DDIM(4)),
    "heun": ("song", samplers.Heun(3)),
    "dpm_solver": ("edm", samplers.DPMSolver(4)),
    "ddpm": ("ddpm", samplers.DDPM(3)),
}
# A process with TensorFlow is started for each on other backends: two are enough there.
HERE = CASES if keras.backend.backend() == "tensorflow" else ("ddim", "heun")


@pytest.fixture(scope="module")
def exported(make, tmp_path_factory, load):
    """A function: a name in CASES -> its model, its sampler, the folder and its signatures."""
    done = {}

    def export(name):
        if name not in done:
            kind, sampler = CASES[name]
            model, path = make(kind), tmp_path_factory.mktemp("export") / "served" / "1"
            guidance = Guidance(2.0, interval=(0.0, 50.0))
            export_sampler(model, path, sampler, guidance=guidance, description={"data": "mine"})
            done[name] = model, sampler, path, load(path)
        return done[name]

    return export


@pytest.mark.parametrize("name", HERE)
def test_it_samples_as_this_process_does(exported, name):
    model, sampler, _, signatures = exported(name)
    seeds, labels = [3, 5], np.array([1, 2], "int32")
    draw = _noise(seeds, 2, model.image_shape)
    noise = draw()
    if sampler.needs_noise:  # the last step takes some too, at no weight
        noise = np.stack([noise, *(draw() for _ in range(sampler.num_steps))], axis=1)
    for scale in (1.0, 2.0):
        guidance = Guidance(scale, interval=(0.0, 50.0))
        expected = sample(
            model, 2, sampler, seed=seeds, label=labels, guidance=guidance, progress=False
        )
        got = signatures["sample_from_noise"](
            noise=noise, label=labels, guidance=np.float32(scale)
        )["images"]
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_it_denoises_as_this_process_does(exported):
    model, *_, signatures = exported("ddim")
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
    *_, signatures = exported("ddim")
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

    *_, signatures = exported("ddim")
    inputs = {"seeds": [1], "label": [0], "guidance": 1.0, **request_}
    dtypes = {"seeds": tf.int64, "label": tf.int32, "guidance": tf.float32}
    tensors = {name: tf.constant(value, dtypes[name]) for name, value in inputs.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["sample"](**tensors)


def test_requests_of_another_shape_or_dtype_are_refused(exported):
    import tensorflow as tf

    *_, signatures = exported("ddim")
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
    _, _, path, _ = exported("ddim")
    metadata = json.loads((path / "assets.extra" / "metadata.json").read_text())
    assert metadata["iterations"] == 12
    assert metadata["weights"] == "average"
    assert len(metadata["weights_sha256"]) == 64
    assert metadata["sampler"]["class_name"] == "DDIM"
    assert metadata["signatures"]["sample"] == {
        "inputs": {
            "seeds": {"dtype": "int64", "shape": [None]},
            "label": {"dtype": "int32", "shape": [None]},
            "guidance": {"dtype": "float32", "shape": []},
        },
        "outputs": {"images": {"dtype": "uint8", "shape": [None, 8, 8, 3]}},
    }
    card = (path / "assets.extra" / "model_card.md").read_text()
    for line in ("- Data: mine", "- Sampler: DDIM, 4 steps", "- Training steps: 12"):
        assert line in card.splitlines()
    assert "guidance=tf.constant(2.0)" in card
    assert not list(path.parent.glob("writing-*"))


def test_what_cannot_be_exported_is_refused(make, make_model, tmp_path):
    model = make("ddpm")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"new or an empty folder.*full"):
        export_sampler(model, tmp_path / "full")
    with pytest.raises(ValueError, match="Received: a model of 4 channels"):
        export_sampler(make_model("ddpm", channels=4), tmp_path / "latent")
    with pytest.raises(ValueError, match="sampler='leapfrog'"):
        export_sampler(model, tmp_path / "new", "leapfrog")
    assert not (tmp_path / "new").exists()

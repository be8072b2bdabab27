"""Exported samplers against sampling in this process; what they refuse; what lies beside them."""

import functools
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest

from keras_cdiff import export_sampler, samplers
from keras_cdiff.common.arrays import fingerprint, network_weights
from keras_cdiff.export import exporter
from keras_cdiff.export.bundle import run_with_tensorflow, write_bundle
from keras_cdiff.samplers import Guidance, sample
from keras_cdiff.samplers.sample import _noise


@pytest.fixture(scope="module")
def load():
    """A function: a folder -> its signatures."""
    tensorflow = pytest.importorskip("tensorflow")
    return lambda path: tensorflow.saved_model.load(str(path)).signatures


SAMPLERS = {
    "ddim": samplers.DDIM(8),
    "heun": samplers.Heun(8),
    "dpm_solver": samplers.DPMSolver(8),
    "ddpm": samplers.DDPM(3),
}
CASES = [("dit", "ddim"), ("edm", "heun"), ("learned", "ddpm")]
MORE_CASES = [("dit", "heun"), ("dit", "dpm_solver"), ("edm", "ddim"), ("edm", "dpm_solver")]
GUIDED = Guidance(2.0, interval=(0.0, 50.0))

EXPORT_BUNDLES = """
import pathlib, sys
from keras_cdiff.export.bundle import read_bundle
from keras_cdiff.export.writer import write_export
for folder in map(pathlib.Path, sys.argv[1:]):
    write_export(*read_bundle(folder / "bundle"), folder / "model")
"""


@pytest.fixture(scope="module")
def export(models, tmp_path_factory, load):
    """A function: pairs of a model and a sampler, by their names -> by pair the model, the sampler,
    the folder and its signatures.
    """
    return functools.partial(export_all, models, tmp_path_factory, load)


@pytest.fixture(scope="module")
def exported(export):
    return export(CASES)


@pytest.fixture(scope="module")
def also_exported(export):
    return export(MORE_CASES)


def export_all(models, tmp_path_factory, load, cases):
    """Elsewhere than on TensorFlow a process writes each export; it takes long to start, so here
    one writes all.
    """
    folders, bundles = {case: tmp_path_factory.mktemp("export") for case in cases}, []

    def keep(bundle, path):
        folder = path.parents[1]
        shutil.copytree(bundle, folder / "bundle")
        path.mkdir()
        bundles.append(str(folder))

    for (kind, name), folder in folders.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "export_bundle", keep)
            export_sampler(
                models[kind],
                folder / "model",
                SAMPLERS[name],
                guidance=GUIDED,
                description={"data": "mine"},
            )
    if bundles:
        for folder in bundles:
            (pathlib.Path(folder) / "model").rmdir()
        run_with_tensorflow("-c", EXPORT_BUNDLES, *bundles)
    return {
        (kind, name): (models[kind], SAMPLERS[name], folder / "model", load(folder / "model"))
        for (kind, name), folder in folders.items()
    }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_it_samples_as_this_process_does(exported, case):
    check_samples(*exported[case])


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", MORE_CASES, ids="-".join)
def test_it_samples_by_other_samplers_as_this_process_does(also_exported, case):
    check_samples(*also_exported[case])


def check_samples(model, sampler, _, signatures):
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
        if sampler.clip:
            assert np.mean(np.abs(expected) == 1.0) < 0.5  # where clipping hides differences
        np.testing.assert_allclose(got, expected, rtol=0.0, atol=1e-4)


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


def test_a_model_card_and_metadata_lie_beside_it(exported):
    model, _, path, _ = exported["dit", "ddim"]
    metadata = json.loads((path / "assets.extra" / "metadata.json").read_text())
    assert metadata["iterations"] == 12
    assert metadata["weights"] == "average"
    assert metadata["sampler"]["class_name"] == "DDIM"
    assert metadata["weights_sha256"] == fingerprint("", *network_weights(model.ema_backbone))
    assert metadata["exported_from"] == keras.backend.backend()
    assert metadata["ema"]["class_name"] == "FixedDecay"
    assert metadata["ema"]["config"] == {"decay": 0.9}
    card = (path / "assets.extra" / "model_card.md").read_text()
    parameters = model.backbone.count_params()
    for line in (
        "- Data: mine",
        "- Sampler: DDIM, 8 steps",
        "- Training steps: 12",
        f"- Weights: average by FixedDecay(decay=0.9), {parameters:,} numbers",
    ):
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
        (
            "steps of this sampler are its own.*num_steps=5",
            model,
            {"sampler": samplers.DDIM(spacing=[90, 50, 10]), "num_steps": 5},
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export_sampler(refused, new, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]  # nothing is half written


@pytest.mark.backend_free
def test_raw_weights_are_exported_if_asked_for(models, tmp_path):
    path = tmp_path / "deep" / "raw" / "1"
    path.mkdir(parents=True)  # an empty folder will do
    export_sampler(models["dit"], path, "heun", 2, use_ema=False)
    metadata = json.loads((path / "assets.extra" / "metadata.json").read_text())
    assert metadata["weights"] == "raw"
    assert metadata["ema"] is None
    assert metadata["num_steps"] == 2
    networks = models["dit"].backbone, models["dit"].ema_backbone
    raw, average = (fingerprint("", *network_weights(network)) for network in networks)
    assert metadata["weights_sha256"] == raw != average


def test_a_failed_export_leaves_nothing(models, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    name = "bundle.run_with_tensorflow"
    if keras.backend.backend() == "tensorflow":
        name = "writer.model_card"
    monkeypatch.setattr(f"keras_cdiff.export.{name}", fail)
    with pytest.raises(OSError, match="disk full"):
        export_sampler(models["dit"], tmp_path / "some" / "where" / "else", samplers.DDIM(2))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_names_the_modules_of_foreign_classes(models, tmp_path):
    @keras.saving.register_keras_serializable("tests")
    class Leap(samplers.DDIM):
        pass

    parts = models["edm"], Leap(2), GUIDED, {"weights": "raw"}, None
    write_bundle(*parts, tmp_path / "bundle")
    modules = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["modules"]
    assert modules == [Leap.__module__]
    Leap.__module__ = "__main__"
    with pytest.raises(ValueError, match=r"move this one.*into a module. Received: Leap"):
        write_bundle(*parts, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()

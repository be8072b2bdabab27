"""ONNX and LiteRT, in their own runtimes, against sampling in this process."""

import dataclasses
import importlib.util
import json

import ai_edge_litert.interpreter
import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from tf2onnx import optimizer

from keras_cdiff import export_sampler, samplers
from keras_cdiff.export import exporter
from keras_cdiff.export.formats import FORMATS
from keras_cdiff.samplers import sample
from keras_cdiff.samplers.sample import _noise

pytestmark = pytest.mark.backend_free

SAMPLERS = {"dit": samplers.DDIM(4, eta=0.5), "edm": samplers.DPMSolver(3)}


@pytest.fixture(
    scope="module",
    params=[
        ("onnx", "dit"),
        ("litert", "edm"),
        pytest.param(("onnx", "edm"), marks=pytest.mark.exhaustive),
        pytest.param(("litert", "dit"), marks=pytest.mark.exhaustive),
    ],
    ids="-".join,
)
def form_and_kind(request):
    return request.param


@pytest.fixture(scope="module")
def form(form_and_kind):
    return form_and_kind[0]


@pytest.fixture(scope="module")
def kind(form_and_kind):
    return form_and_kind[1]


@pytest.fixture(scope="module")
def path(models, form, kind, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    with pytest.MonkeyPatch.context() as monkeypatch:
        # A pass that fails ends the export here. Else tf2onnx goes on without it, for which it
        # copies the graph before each, and that takes as long as the passes do.
        optimize = optimizer.optimize_graph
        monkeypatch.setattr(
            optimizer,
            "optimize_graph",
            lambda graph, _, **options: optimize(graph, False, **options),
        )
        export_sampler(models[kind], path, SAMPLERS[kind], guidance=2.0, format=form)
    return path


def run(path, task, **inputs):
    """The answer of one task of an export."""
    if (path / "model.tflite").exists():
        model = ai_edge_litert.interpreter.Interpreter(str(path / "model.tflite"))
        (answer,) = model.get_signature_runner(task)(**inputs).values()
        return answer
    session = onnxruntime.InferenceSession(path / f"{task}.onnx")
    return session.run(None, {name: np.asarray(value) for name, value in inputs.items()})[0]


def test_it_samples_as_this_process_does(models, kind, path):
    model, sampler, labels = models[kind], SAMPLERS[kind], np.array([1, 2, 3], "int32")
    draw = _noise([3, 5, 7], 3, model.image_shape)
    noise = draw()
    if sampler.needs_noise:
        noise = np.stack([noise, *(draw() for _ in range(sampler.num_steps))], axis=1)
    for scale in (1.0, 2.0):
        expected = sample(
            model, 3, sampler, seed=[3, 5, 7], label=labels, guidance=scale, progress=False
        )
        for count in (3, 1):  # any batch size
            got = run(
                path,
                "sample_from_noise",
                noise=noise[:count],
                label=labels[:count],
                guidance=np.float32(scale),
            )
            np.testing.assert_allclose(got, expected[:count], rtol=0.0, atol=1e-4)


def test_it_denoises_as_this_process_does(models, kind, path):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    level, label = np.array([5.0, 45.0], "float32"), np.array([0, 3], "int32")
    scale = np.float32(3.0)
    expected = models[kind].denoise(x, level, label, guidance=scale, use_ema=True)
    got = run(path, "denoise", x=x, level=level, label=label, guidance=scale)
    np.testing.assert_allclose(got, keras.ops.convert_to_numpy(expected), rtol=1e-4, atol=1e-4)


def test_the_program_on_the_model_card_runs(form, path, card_code):
    names = {}
    exec(card_code(path), names)
    assert names["images"].shape == (4, 8, 8, 3)
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["format"] == form
    assert sorted(metadata["signatures"]) == ["denoise", "sample_from_noise"]


def test_networks_of_half_precision_compute_in_float32(make_model, tmp_path):
    whole, half = (make_model("flow", dtype=dtype) for dtype in ("float32", "mixed_bfloat16"))
    half.ema_backbone.set_weights(whole.ema_backbone.get_weights())
    export_sampler(half, tmp_path / "model", samplers.DDIM(2), format="litert")
    metadata = json.loads((tmp_path / "model" / "metadata.json").read_text())
    assert metadata["dtype_policy"] == "float32"
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    level, label = np.array([0.1, 0.9], "float32"), np.array([0, 2], "int32")
    got = run(tmp_path / "model", "denoise", x=x, level=level, label=label, guidance=np.float32(1))
    whole, halved = (
        keras.ops.convert_to_numpy(model.denoise(x, level, label, use_ema=True))
        for model in (whole, half)
    )
    np.testing.assert_allclose(got, whole, atol=1e-5)
    assert np.abs(halved - whole).max() > 1e-3


def test_a_format_whose_writer_is_not_installed_is_refused(models, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        exporter.importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r"pip install tf2onnx.*format='onnx'"):
        export_sampler(models["dit"], tmp_path / "model", format="onnx")
    assert not (tmp_path / "model").exists()


def test_networks_too_large_for_onnx_are_refused(models, tmp_path, monkeypatch):
    small = dataclasses.replace(FORMATS["onnx"], limit=2**10)
    monkeypatch.setitem(FORMATS, "onnx", small)
    with pytest.raises(ValueError, match=r"less than .* GiB: export a SavedModel. Rec.*'onnx'"):
        export_sampler(models["dit"], tmp_path / "model", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_xla_gives_the_same_images(make_model, tmp_path):
    model = make_model("ddpm")
    for name, compiled in (("plain", False), ("xla", True)):
        export_sampler(model, tmp_path / name, samplers.DDIM(4), jit_compile=compiled)
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    plain, xla = (
        tf.saved_model.load(str(path)).signatures["sample_from_noise"](
            noise=noise, label=np.array([0, 2], "int32"), guidance=np.float32(2.0)
        )["images"]
        for path in (tmp_path / "plain", tmp_path / "xla")
    )
    np.testing.assert_allclose(xla, plain, atol=1e-4)
    for name, compiled in (("plain", False), ("xla", True)):
        graph = (tmp_path / name / "saved_model.pb").read_bytes()
        assert (b"_XlaMustCompile" in graph) == compiled

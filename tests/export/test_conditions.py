"""Exports of models that take contexts and of models of latents, which are decoded in the graph."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_cdiff import export_sampler, samplers
from keras_cdiff.parameterizations import Velocity
from keras_cdiff.samplers import sample
from keras_cdiff.samplers.sample import _noise

pytestmark = pytest.mark.one_backend

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model(make_model):
    """A model of latents that takes contexts of width 6, whose answers depend on them."""
    model = make_model(
        "ddpm",
        parameterization=Velocity(),
        depth=1,
        image_size=4,
        channels=4,
        num_classes=0,
        context_width=6,
    )
    generator = np.random.default_rng(0)
    for network in (model.backbone, model.ema_backbone):
        for weight in network.weights:  # those of an average are none that train
            if "seed" in weight.path or "positions" in weight.path:
                continue
            scale = 0.5 / np.sqrt(weight.shape[0]) if len(weight.shape) > 1 else 0.1
            weight.assign(scale * generator.normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def folder(model, autoencoder, tmp_path_factory):
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("export") / "model"
    encoder = {"name": "minilm:m.npz", "fingerprint": "f" * 64}
    export_sampler(
        model,
        folder,
        samplers.DDIM(3, clip=False),
        guidance=2.0,
        autoencoder=autoencoder,
        description={"text_encoder": encoder},
    )
    return folder


@pytest.fixture(scope="module")
def signatures(folder):
    import tensorflow as tf

    return tf.saved_model.load(str(folder)).signatures


def contexts(length=3):
    context = np.random.default_rng(1).normal(size=(2, length, 6)).astype("float32")
    context[0, 1:] = 0.0  # padding
    return context


@pytest.mark.parametrize(("scale", "length"), [(1.0, 3), (2.0, 3), (2.0, 5)])
def test_contexts_of_any_length_and_decoded_images(model, autoencoder, signatures, scale, length):
    seeds, context = [3, 5], contexts(length)
    noise = _noise(seeds, 2, model.image_shape)()
    latents = sample(
        model,
        2,
        samplers.DDIM(3, clip=False),
        seed=seeds,
        context=context,
        guidance=scale,
        progress=False,
    )
    request = {"noise": noise, "context": context, "guidance": np.float32(scale)}
    images = signatures["sample_from_noise"](**request)["images"]
    np.testing.assert_allclose(images, autoencoder.decode(latents), rtol=0.0, atol=1e-4)
    other = signatures["sample_from_noise"](**{**request, "context": context[::-1]})["images"]
    assert np.abs(np.asarray(other) - images).max() > 0.01


def test_images_are_grey_levels_and_clean_estimates_latents(signatures):
    import tensorflow as tf

    request = {"context": tf.constant(contexts()), "guidance": tf.constant(1.0)}
    images = signatures["sample"](seeds=tf.constant([1, 2], tf.int64), **request)["images"]
    assert (images.dtype, images.shape) == (tf.uint8, (2, 8, 8, 3))
    x = tf.ones((2, 4, 4, 4))
    clean = signatures["denoise"](x=x, level=tf.constant([5.0, 50.0]), **request)["clean"]
    assert clean.shape == (2, 4, 4, 4)


def test_requests_without_fitting_contexts_are_refused(signatures):
    import tensorflow as tf

    seeds, guidance = tf.constant([1, 2], tf.int64), tf.constant(1.0)
    for context, message in (
        (tf.zeros((2, 3, 5)), "context"),
        (tf.zeros((3, 3, 6)), "context must have one entry for each of seeds"),
        (tf.fill((2, 3, 6), float("nan")), "context must be finite"),
    ):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
            signatures["sample"](seeds=seeds, context=context, guidance=guidance)


def test_what_lies_beside_it_tells_of_contexts_and_autoencoder(folder, autoencoder, card_code):
    metadata = json.loads((folder / "assets.extra" / "metadata.json").read_text())
    assert metadata["image_shape"] == [8, 8, 3]
    assert metadata["autoencoder"]["fingerprint"] == autoencoder.fingerprint()
    assert metadata["context_width"] == 6
    inputs = metadata["signatures"]["sample"]["inputs"]
    assert inputs["context"]["shape"] == [None, None, 6]
    assert set(inputs) == {"seeds", "context", "guidance"}
    card = (folder / "assets.extra" / "model_card.md").read_text()
    assert "made of texts by minilm:m.npz (fingerprint ffffffffffffffff)" in card
    assert "Guidance, recommended: 2.0" in card
    scope = {}
    exec(card_code(folder, "assets.extra"), scope)
    assert scope["images"].shape == (4, 8, 8, 3)


def test_the_example_samples_under_a_context(folder, signatures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = contexts()[1]
    np.save("context.npy", context)
    arguments = ["--seeds", "1", "2", "--context=context.npy", "--guidance=2"]
    monkeypatch.setattr(sys, "argv", ["sample_from_export.py", str(folder), *arguments])
    runpy.run_path(str(EXAMPLES / "sample_from_export.py"), run_name="__main__")
    import tensorflow as tf

    expected = signatures["sample"](
        seeds=tf.constant([1, 2], tf.int64),
        context=tf.stack([context, context]),
        guidance=tf.constant(2.0),
    )["images"]
    with Image.open("sample_2.png") as image:
        np.testing.assert_array_equal(np.asarray(image), expected[1])


@pytest.mark.backend_free
@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.exhaustive), "litert"])
def test_other_formats_take_contexts_and_decode(model, autoencoder, tmp_path, form):
    sampler = samplers.DDIM(2, clip=False)
    export_sampler(model, tmp_path / form, sampler, format=form, autoencoder=autoencoder)
    context, guidance = contexts(), np.array(2.0, "float32")
    request = {"noise": _noise([3, 5], 2, model.image_shape)(), "context": context}
    request["guidance"] = guidance
    if form == "onnx":
        import onnxruntime

        task = onnxruntime.InferenceSession(tmp_path / form / "sample_from_noise.onnx")
        images = task.run(["images"], request)[0]
    else:
        from ai_edge_litert.interpreter import Interpreter

        task = Interpreter(str(tmp_path / form / "model.tflite"))
        images = task.get_signature_runner("sample_from_noise")(**request)["images"]
    options = {"seed": [3, 5], "context": context, "guidance": 2.0, "progress": False}
    latents = sample(model, 2, sampler, **options)
    np.testing.assert_allclose(images, autoencoder.decode(latents), rtol=0.0, atol=1e-4)


def test_a_model_of_latents_needs_its_autoencoder(model, make_model, autoencoder, tmp_path):
    with pytest.raises(ValueError, match="exported with the autoencoder"):
        export_sampler(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"and one of images without"):
        export_sampler(make_model(), tmp_path / "model", autoencoder=autoencoder)
    assert not (tmp_path / "model").exists()

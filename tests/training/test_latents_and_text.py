"""Runs on latents and runs on captions: what they train on, keep, decode, measure and refuse."""

import copy
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_cdiff import training
from keras_cdiff.autoencoders import Autoencoder, kl_networks
from keras_cdiff.data import ArraySource, open_source, open_text_encoder
from keras_cdiff.evaluation import Evaluator, SourceImages, open_extractor
from keras_cdiff.samplers import DDIM, sample
from keras_cdiff.training.evaluation import conditions_like
from keras_cdiff.training.generation import SampleGrid
from keras_cdiff.training.run_data import open_data

pytestmark = [
    pytest.mark.one_backend,
    pytest.mark.filterwarnings("ignore:the Frechet distance of"),  # of four images
]

LATENT = {"image_size": 4, "horizontal_flip": True}


@pytest.fixture(scope="module")
def latent_run(tiny, latents, extractor_file, tmp_path_factory):
    """The workdir and the configuration of a run on latents, evaluated and validated."""
    workdir = tmp_path_factory.mktemp("runs") / "latent"
    config = tiny(
        {"channels": 4},
        data=latents,
        **LATENT,
        log_every=2,
        evaluate_every=3,
        evaluate_samples=4,
        extractor=f"keras:{extractor_file}",
        validate_every=3,
        validation_data=latents,
        validation_images=4,
    )
    training.train(config, workdir)
    return workdir, config


@pytest.fixture(scope="module")
def text_run(tiny, captioned, text_encoder, extractor_file, tmp_path_factory):
    """The workdir of a run on captions, evaluated and validated on the same images."""
    workdir = tmp_path_factory.mktemp("runs") / "text"
    config = tiny(
        data=captioned,
        text_encoder=text_encoder,
        log_every=2,
        checkpoint_every=2,
        evaluate_every=3,
        evaluate_samples=4,
        extractor=f"keras:{extractor_file}",
        validate_every=3,
        validation_data=captioned,
        validation_images=4,
    )
    training.train(config, workdir)
    return workdir


# Latents


def test_a_run_on_latents_says_which_autoencoder_made_them(latent_run, autoencoder, latents, npz):
    workdir, _ = latent_run
    config = training.Workdir(workdir).config()
    described = config["autoencoder"]
    assert described["fingerprint"] == autoencoder.fingerprint()
    assert (described["images"], described["image_size"]) == (npz(), 8)
    assert described["factor"] * config["model"]["backbone"]["image_size"] == 8
    assert config["model"]["backbone"]["num_classes"] == 3
    assert config["text_encoder"] is None


def test_it_is_measured_on_decoded_images(latent_run, read_log, npz):
    workdir, _ = latent_run
    (record,) = read_log(workdir, "evaluations.jsonl")
    assert record["generated"]["image_size"] == [8, 8]
    assert record["generated"]["autoencoder"]["factor"] == 2
    assert record["reference"]["images"] == npz()
    assert record["metrics"]["frechet_distance"] > 0
    (record,) = read_log(workdir, "validation.jsonl")
    assert record["num_images"] == 4


def test_its_samples_are_decoded_wherever_the_workdir_lies(latent_run, autoencoder, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(latent_run[0], workdir)
    model, config = training.load_run(workdir)
    assert config["autoencoder"]["name"] == f"kl:{workdir / 'autoencoder'}"
    images = training.generate(model, config, tmp_path / "samples", num_samples=3)
    latents = sample(model, 3, **training.sampling_settings(model, config, 3), progress=False)
    expected = np.clip(np.rint((autoencoder.decode(latents) + 1) * 127.5), 0, 255)
    np.testing.assert_allclose(images, expected, atol=1)  # grey levels
    assert images.shape == (3, 8, 8, 3)
    assert images.std() > 1


def test_it_is_evaluated_against_the_images_that_were_encoded(latent_run, extractor_file, npz):
    model, config = training.load_run(latent_run[0])
    evaluator = Evaluator(open_extractor(f"keras:{extractor_file}"))
    result = training.evaluate_model(model, config, evaluator, num_samples=4)
    assert result.record["reference"]["images"] == npz()
    assert result.record["generated"]["image_size"] == [8, 8]
    del config["autoencoder"]["images"]  # a weights file knows of no images
    with pytest.raises(ValueError, match="give a reference"):
        training.evaluate_model(model, config, evaluator, num_samples=4)


def test_a_damaged_or_another_autoencoder_is_refused(latent_run, tmp_path):
    workdir = tmp_path / "other"
    shutil.copytree(latent_run[0], workdir)
    shutil.rmtree(workdir / "autoencoder")
    Autoencoder(*kl_networks(factor=2, width=16), 0.7, "kl").save(workdir / "autoencoder")
    model, config = training.load_run(workdir)
    with pytest.raises(ValueError, match="same autoencoder"):
        training.generate(model, config, tmp_path / "samples", num_samples=1)
    assert not (tmp_path / "samples").exists()


def test_weights_of_latents_need_the_autoencoder_by_name(latent_run, tmp_path, autoencoder):
    workdir, config = latent_run
    model, _ = training.load_run(workdir)
    unknown = {**config, "autoencoder": None}
    with pytest.raises(ValueError, match="--autoencoder=stable_diffusion"):
        training.generate(model, unknown, tmp_path, num_samples=1)
    known = {**config, "autoencoder": autoencoder.describe()}
    assert training.generate(model, known, tmp_path, num_samples=1).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ({"channels": 4}, {}, "the data is images: encode them"),
        ({}, {"data": "latents"}, "works on pixels: choose a preset of latents"),
        ({"channels": 4}, {"data": "latents", "image_size": 8}, "image_size=8"),
        ({"channels": 5}, {"data": "latents", **LATENT}, "latents of 5 channels"),
        ({"channels": 4}, {"data": "latents:PATH", **LATENT}, "make them with apps/encode.py"),
    ],
)
def test_data_of_the_other_kind_or_size(tiny, latents, tmp_path, network, arguments, message):
    if arguments.get("data") == "latents":
        arguments = {**arguments, "data": latents}
    with pytest.raises(ValueError, match=message):
        training.train(tiny(network, **arguments), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Text


def test_a_run_on_captions_says_which_encoder_embedded_them(text_run, text_encoder, captioned):
    config = training.Workdir(text_run).config()
    assert config["text_encoder"] == open_text_encoder(text_encoder).describe()
    assert config["model"]["backbone"]["context_width"] == 64
    path = captioned.partition(":")[2]
    assert list(Path(f"{path}.text").iterdir())  # kept beside the data
    assert not (text_run / "text").exists()


def test_it_is_measured_with_captions(text_run, read_log):
    (record,) = read_log(text_run, "evaluations.jsonl")
    assert record["generated"]["contexts"] is not None
    assert record["generated"]["labels"] is None
    assert record["generated"]["guidance"] == 2.0


def test_captions_and_labels_are_those_of_one_image(make_model, text_encoder):
    labels = np.array([2, 0, 1, 1, 0, 2])
    texts = np.array([f"class {label}" for label in labels])
    images = np.zeros((6, 8, 8, 3), np.uint8)
    reference = SourceImages(ArraySource("six", images, labels, texts))
    model = make_model(context_width=64)
    encoder = open_text_encoder(text_encoder)
    for count in (4, 6, 9):
        label, context = conditions_like(model, encoder, reference, count)
        assert [f"class {number}" for number in label] == context.texts
        assert len(set(context.texts)) > 1
    without = make_model(num_classes=0, context_width=64)
    assert conditions_like(without, encoder, reference, 4)[0] is None


def test_prompts_decide_the_samples(text_run, tmp_path):
    model, config = training.load_run(text_run)
    for weight in model.ema_backbone.weights:  # three steps do not teach it to look at texts
        if "kernel" in weight.path:
            weight.assign(0.1 * np.random.default_rng(0).normal(size=weight.shape))
    folder = tmp_path / "samples"
    prompts = ["a cat", "red apple"]
    images = training.generate(model, config, folder, num_samples=4, prompts=prompts, guidance=3.0)
    contexts = training.prompt_contexts(config, prompts)
    settings = training.sampling_settings(model, config, 2, context=contexts, guidance=3.0)
    expected = sample(model, 2, **settings, progress=False)
    np.testing.assert_allclose(images[:2] / 127.5 - 1, np.clip(expected, -1, 1), atol=0.01)
    swapped = training.sampling_settings(model, config, 2, context=contexts[::-1], guidance=3.0)
    assert np.abs(sample(model, 2, **swapped, progress=False) - expected).max() > 0.01
    null = training.sampling_settings(model, config, 2)
    assert (null["context"], null["guidance"].scale) == (None, 1.0)
    with pytest.raises(ValueError, match="at least one prompt"):
        training.generate(model, config, folder, prompts=[])
    with pytest.raises(ValueError, match=r"num_samples=1, with 2 prompts"):
        training.generate(model, config, folder, num_samples=1, prompts=prompts)


def test_an_interrupted_run_on_captions_ends_as_if_nothing_had_happened(
    text_run, tiny, captioned, text_encoder, tmp_path, read_log
):
    config = training.Workdir(text_run).config()
    shorter = copy.deepcopy(config)
    shorter["training"]["steps"] = 2
    training.train(shorter, tmp_path)
    model = training.train(config, tmp_path)
    expected, _ = training.load_run(text_run)
    for got, want in zip(model.backbone.weights, expected.backbone.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (got, want)))
    (record,), (again,) = (
        read_log(folder, "validation.jsonl")[-1:] for folder in (text_run, tmp_path)
    )
    assert record["loss"] == again["loss"]


def test_a_run_goes_on_with_its_encoder_elsewhere(text_run, text_encoder, tmp_path):
    """And where a process was killed while it copied a folder into the workdir."""
    workdir, moved = tmp_path / "run", tmp_path / "moved.npz"
    shutil.copytree(text_run, workdir)
    shutil.copy(text_encoder.partition(":")[2], moved)
    (workdir / "writing-abc").mkdir()
    config = training.Workdir(workdir).config()
    config["text_encoder"] = {"name": f"minilm:{moved}"}
    config["training"]["steps"] = 4
    open_data(config)  # completes what the configuration says of the encoder
    training.Workdir(workdir).claim(config, step=3)
    assert training.Workdir(workdir).config()["text_encoder"]["name"] == f"minilm:{moved}"
    assert not (workdir / "writing-abc").exists()


def test_captions_that_have_changed_are_noticed(text_run, captioned, tmp_path):
    with np.load(captioned.partition(":")[2]) as file:
        arrays = {**file, "captions": file["captions"][::-1]}
    np.savez(tmp_path / "changed.npz", **arrays)
    config = training.Workdir(text_run).config()
    changed, data = (
        open_data({**config, "data": f"npz:{tmp_path / 'changed.npz'}"}),
        open_data(config),
    )
    for each in (changed, data):
        each.embed_captions(tmp_path)
    assert changed.describe() != data.describe()


def test_another_text_encoder_is_refused(text_run, golden, tmp_path):
    weights = golden("bert").folder("weights")
    changed = {k: v + v.dtype.type(0.5) if v.dtype.kind == "f" else v for k, v in weights.items()}
    np.savez(tmp_path / "other.npz", **changed)
    model, config = training.load_run(text_run, text_encoder=f"minilm:{tmp_path / 'other.npz'}")
    with pytest.raises(ValueError, match="same text encoder"):
        training.generate(model, config, tmp_path / "samples", prompts=["a cat"])
    config = training.Workdir(text_run).config()
    config["text_encoder"] = {"name": f"minilm:{tmp_path / 'other.npz'}"}
    config["training"]["steps"] = 5
    with pytest.raises(ValueError, match=r"text_encoder\.fingerprint was"):
        training.train(config, text_run)


def test_a_text_run_is_evaluated_with_captions(text_run, captioned, npz, extractor_file):
    model, config = training.load_run(text_run)
    evaluator = Evaluator(open_extractor(f"keras:{extractor_file}"))
    result = training.evaluate_model(model, config, evaluator, num_samples=4)
    assert result.record["generated"]["contexts"] is not None
    assert result.record["generated"]["guidance"] == config["sampling"]["guidance"]
    with pytest.raises(ValueError, match=r"measured with captions.*without captions"):
        training.evaluate_model(model, config, evaluator, npz(), num_samples=4)


def test_what_does_not_go_with_text(tiny, npz, text_encoder, text_run, latent_run, tmp_path):
    with pytest.raises(ValueError, match=r"needs captions.*Received: data="):
        training.train(tiny(data=npz(), text_encoder=text_encoder), tmp_path / "run")
    with pytest.raises(ValueError, match="--text_encoder=minilm:FILE"):
        open_data(training.resolve("dit_text_emoji16"))
    with pytest.raises(ValueError, match="`text_encoder` is for transformers"):
        training.resolve("edm_emoji16", text_encoder=text_encoder)
    model, config = training.load_run(latent_run[0])
    with pytest.raises(ValueError, match="not conditioned on text"):
        training.generate(model, config, tmp_path / "samples", prompts=["a cat"])
    with pytest.raises(ValueError, match="not conditioned on text"):
        training.load_run(latent_run[0], text_encoder=text_encoder)
    assert json.loads(training.Workdir(text_run).config_file.read_text())["autoencoder"] is None


def test_grids_show_captions_and_decoded_latents(make_model, autoencoder, tmp_path):
    from PIL import Image

    model = make_model(image_size=4, channels=4, num_classes=0, context_width=6)
    grid = SampleGrid(
        tmp_path,
        every=1,
        sampler=DDIM(1),
        num_samples=2,
        guidance=2.0,
        context=np.ones((2, 3, 6), "float32"),
        decode=autoencoder.decode,
    )
    grid.set_model(model)
    grid.act(1, None)
    with Image.open(tmp_path / "step_000001.png") as image:
        assert image.size == (2 * 66 + 2, 66 + 2)  # 8 x 8 pixels at eight times their size


def test_weights_files_know_their_encoders(
    text_run, text_encoder, latent_run, autoencoder, golden, tmp_path
):
    file = training.Workdir(text_run).weights_file("raw")
    with pytest.raises(ValueError, match="same image size"):  # the preset's network is larger
        training.load_weights(file, "dit_emoji16", image_size=8, text_encoder=text_encoder)
    weights = golden("bert").folder("weights")
    changed = {k: v + v.dtype.type(0.5) if v.dtype.kind == "f" else v for k, v in weights.items()}
    np.savez(tmp_path / "other.npz", **changed)
    with pytest.raises(ValueError, match="same text encoder"):
        training.load_weights(
            file, "dit_emoji16", image_size=8, text_encoder=f"minilm:{tmp_path / 'other.npz'}"
        )
    file = training.Workdir(latent_run[0]).weights_file("raw")
    Autoencoder(*kl_networks(factor=2, width=16), 0.7, "kl").save(tmp_path / "kl")
    with pytest.raises(ValueError, match="trained with another autoencoder"):
        training.load_weights(file, "dit_latent_emoji64", f"kl:{tmp_path / 'kl'}", image_size=4)
    with pytest.raises(ValueError, match="same image size"):
        training.load_weights(file, "dit_latent_emoji64", autoencoder.name, image_size=4)


def test_sources_tell_whether_they_are_latents(latents, captioned):
    assert open_source(latents).latent_size == 4
    assert open_source(captioned).captions()[:2] == [("a cat",), ("red apple",)]

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from keras_cdiff import autoencoders
from keras_cdiff.data import open_source, prepare_image
from keras_cdiff.presets import preset


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("encode") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (10, 8, 8, 3), np.uint8), labels=np.arange(10) % 2)
    return f"npz:{path}"


@pytest.mark.one_backend  # fits on every backend are tested beside `fit_autoencoder`
def test_a_small_autoencoder_is_fitted_and_encodes(run_app, backend, images, tmp_path):
    """And the command can be repeated."""
    command = (
        *(f"--data={images}", "--image_size=8", "--autoencoder=train", "--autoencoder_steps=2"),
        *("--batch_size=4", "--shard_size=6", f"--output={tmp_path}", backend),
    )
    process = run_app("encode", *command)
    assert process.returncode == 0, process.stderr
    assert "10 images as latents of 2 x 2 x 4, 128 bytes each" in process.stdout
    latents = open_source(f"latents:{tmp_path}")
    autoencoder = autoencoders.open_autoencoder(
        latents.autoencoder_name(), latents.autoencoder["fingerprint"]
    )
    source = open_source(images)
    prepared = np.stack([prepare_image(source[n]["image"], 8) for n in range(10)])
    seen = np.stack([latents[n]["moments"] for n in range(10)])
    assert np.allclose(seen[:, 0], autoencoder.moments(prepared), rtol=2e-3, atol=1e-4)
    mirrored = autoencoder.moments(np.ascontiguousarray(prepared[:, :, ::-1]))
    assert np.allclose(seen[:, 1], mirrored, rtol=2e-3, atol=1e-4)
    assert latents.labels().tolist() == [0, 1] * 5

    before = (tmp_path / "index.json").read_bytes()
    process = run_app("encode", *command)
    assert "all were there before" in process.stdout
    assert (tmp_path / "index.json").read_bytes() == before

    process = run_app("encode", "--verify", f"--output={tmp_path}", backend)
    assert process.returncode == 0, process.stderr
    assert "latents of 10 images, 0 embeddings of captions, 1 autoencoders" in process.stdout


@pytest.mark.backend_free
def test_a_dry_run_says_what_would_be_done(run_app, tmp_path):
    process = run_app("encode", "--data=tfds:coco_captions", f"--output={tmp_path}/x", "--dry_run")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["latent_shape"] == [32, 32, 4]
    assert found["data"] == "tfds:coco_captions"
    assert not (tmp_path / "x").exists()


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--output"),
        (("--output=x",), "Give --data, the images; or --verify"),
        (("--output=x", "--verify"), "make them with apps/encode.py"),
        (("--output=x", "--data=emoji", "--autoencoder=kl:missing"), "missing"),
        (("--output=x", "--data=emoji", "--autoencoder=train:x", "--dry_run"), "FOLDER or train"),
        (("--output=x", "--data=emoji", "--text_encoder=minilm:none.npz"), "none.npz"),
        (("--output=x", "--data=IMAGES", "--text_encoder=clip:random"), "images with captions"),
        (("--output=x", "--data=emoji", "word"), "Flags begin with --"),
    ],
)
def test_bad_arguments_say_what_is_wrong(run_app, tmp_path, images, arguments, message):
    arguments = [a.replace("=x", f"={tmp_path / 'x'}").replace("IMAGES", images) for a in arguments]
    process = run_app("encode", *arguments)
    assert process.returncode not in (0, 75)
    assert message in process.stderr + process.stdout
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "x").exists()


RECIPES = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
COMMANDS = re.findall(r"^python apps/(encode|train)\.py (.*)$", RECIPES, re.MULTILINE)


@pytest.mark.backend_free
@pytest.mark.parametrize(("app", "arguments"), COMMANDS)
def test_recipes_can_be_tried_without_data(run_app, app, arguments):
    process = run_app(app, *shlex.split(arguments), "--dry_run")
    assert process.returncode == 0, process.stderr
    plan = json.loads(process.stdout)
    flags = dict(re.findall(r"--(data|preset|text_encoder)=(\S+)", arguments))
    assert plan["data"] == flags["data"]
    if app == "train":
        assert plan["preset"] == flags["preset"]
        if "text_encoder" in flags:
            assert plan["text_encoder"] == {"name": flags["text_encoder"]}


@pytest.mark.backend_free
def test_recipes_fit_together():
    """Each store that is trained on was encoded by a command before it, at the preset's size."""
    stores = {}
    for app, arguments in COMMANDS:
        flags = dict(re.findall(r"--(\w+)=(\S+)", arguments))
        if app == "encode":
            factor = 4 if flags.get("autoencoder") == "train" else 8
            stores[flags["output"]] = int(flags["image_size"]) // factor
        elif flags["data"].startswith("latents:"):
            backbone = preset(flags["preset"])["model"]["backbone"]
            assert stores[flags["data"].partition(":")[2]] == backbone["image_size"]
            assert backbone["channels"] == 4
    assert len(stores) == 4

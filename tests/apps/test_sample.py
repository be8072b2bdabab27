import keras
import numpy as np
import pytest
from PIL import Image

from keras_cdiff import training
from keras_cdiff.data import open_text_encoder
from keras_cdiff.training.building import SAMPLERS, build_model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run, as `train` would leave it, of a very small network with random weights."""
    config = training.resolve("dit_emoji16", image_size=8)
    config["model"]["backbone"].update(width=16, depth=1, num_heads=2)
    config["sampling"]["num_steps"] = 2
    folder = training.Workdir(tmp_path_factory.mktemp("runs") / "emoji")
    folder.claim(config)
    keras.utils.set_random_seed(0)
    folder.save_weights(build_model(config))
    return folder.path


@pytest.mark.one_backend
def test_samples_of_a_run_are_written(workdir, tmp_path, run_app, backend):
    output = tmp_path / "output"
    process = run_app(
        "sample",
        f"--workdir={workdir}",
        f"--output={output}",
        backend,
        "--num_samples=5",
        "--seed=1",
        "--sampler=ddim",
        "--num_steps=3",
        "--label=2",
        "--guidance=2",
        "--nouse_ema",
    )
    assert process.returncode == 0, process.stderr
    with np.load(output / "samples.npz") as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_0"].shape == (5, 8, 8, 3)
        written = file["arr_0"]
    with Image.open(output / "samples.png") as grid:
        assert grid.size == (3 * 66 + 2, 2 * 66 + 2)

    model, config = training.load_run(workdir)
    options = {"num_samples": 5, "seed": 1, "sampler": "ddim", "num_steps": 3, "label": 2}
    expected = training.generate(
        model, config, tmp_path / "expected", guidance=2.0, use_ema=False, **options
    )
    np.testing.assert_allclose(written.astype(int), expected.astype(int), atol=1)


@pytest.mark.one_backend
def test_prompts_and_latents(tmp_path, run_app, backend, text_encoder, autoencoder):
    """Each prompt in turn, of a run on captioned latents; the encoder has moved since."""
    config = training.resolve("dit_latent_emoji64", num_classes=0, text_encoder="minilm:gone.npz")
    config["model"]["backbone"].update(
        width=16, depth=1, num_heads=2, image_size=4, context_width=64
    )
    config["sampling"]["num_steps"] = 2
    config["autoencoder"] = autoencoder.describe()
    config["text_encoder"]["fingerprint"] = open_text_encoder(text_encoder).fingerprint()
    folder = training.Workdir(tmp_path / "run")
    folder.claim(config)
    folder.keep_autoencoder(autoencoder)
    folder.save_weights(build_model(config))
    process = run_app(
        "sample",
        f"--workdir={folder.path}",
        f"--text_encoder={text_encoder}",
        f"--output={tmp_path / 'output'}",
        backend,
        "--num_samples=3",
        "--prompt=a cat",
        "--prompt=red apple",
        "--guidance=2",
    )
    assert process.returncode == 0, process.stderr
    with np.load(tmp_path / "output" / "samples.npz") as file:
        assert file["arr_0"].shape == (3, 8, 8, 3)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workdir={workdir}", "--prompt=a cat"), "not conditioned on text"),
        (("--workdir={workdir}", "--text_encoder=clip"), "not conditioned on text"),
        (("--workdir={workdir}", "--autoencoder=stable_diffusion"), "is not of latents"),
        (("--workdir={workdir}", "--label=9"), "label=9"),
        (("--workdir={workdir}", "--step=99"), "Received: step=99"),
        (
            ("--workdir={workdir}", "--output={output}", "--guidance=2", "--guidance_interval=3"),
            "two numbers, LOW,HIGH. Received: 3",
        ),
        (
            ("--workdir={workdir}", "--output={output}", "--guidance_interval=a,b"),
            "two numbers, LOW,HIGH. Received: a,b",
        ),
        (
            ("--workdir={workdir}", "--output={output}", "--guidance_interval=1,2,3"),
            "LOW,HIGH. Received: 1,2,3",
        ),
        (
            (
                "--weights={workdir}/weights/raw.weights.h5",
                "--preset=dit_emoji16",
                "--output={output}",
            ),
            "must hold this preset's network",
        ),
    ],
)
def test_what_cannot_be_sampled_ends_with_a_message(
    workdir, tmp_path, run_app, backend, arguments, message
):
    output = tmp_path / "output"
    filled = [text.format(workdir=workdir, output=output) for text in arguments]
    process = run_app("sample", backend, *filled)
    assert process.returncode != 0
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not output.exists()
    assert not (workdir / "output").exists()


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--workdir=run", "--preset=dit_emoji16"),
        ("--workdir=run", "--num_classes=3"),
        ("--weights=ema.weights.h5", "--output=samples"),
        ("--weights=ema.weights.h5", "--preset=dit_emoji16"),
        ("--weights=ema.weights.h5", "--preset=dit_emoji16", "--output=samples", "--step=3"),
    ],
)
def test_it_must_be_clear_what_is_sampled(run_app, arguments):
    process = run_app("sample", *arguments)
    assert process.returncode != 0
    assert "Give --workdir" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.backend_free
def test_the_help_has_examples_and_the_samplers_of_the_package(run_app):
    process = run_app("sample", "--help")
    assert f"<{'|'.join(SAMPLERS)}>" in process.stdout
    assert "python apps/sample.py --workdir=runs/emoji" in process.stdout

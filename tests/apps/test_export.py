import json

import pytest

from keras_cdiff import training
from keras_cdiff.training.building import build_model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The folder of a finished run, as far as an export looks at it."""
    config = training.resolve("dit_emoji16", image_size=8, num_classes=2, steps=7)
    config["model"]["backbone"].update(width=16, depth=1, num_heads=2)
    config["sampling"]["num_steps"] = 2
    config["backend"] = "jax"  # weights files are the same for all
    run = training.Workdir(tmp_path_factory.mktemp("export") / "run")
    run.claim(config)
    model = build_model(config)
    model.iteration.assign(7)
    run.save_weights(model)
    return run.path


@pytest.mark.backend_free
def test_a_run_becomes_a_saved_model(workdir, run_app, tmp_path):
    output = tmp_path / "served" / "1"
    arguments = (f"--workdir={workdir}", f"--output={output}")
    process = run_app("export", *arguments, "--sampler=dpm_solver", "--num_steps=3")
    assert process.returncode == 0, process.stderr
    assert f"wrote {output}" in process.stdout
    metadata = json.loads((output / "assets.extra" / "metadata.json").read_text())
    assert metadata["sampler"]["class_name"] == "DPMSolver"
    assert metadata["sampler"]["config"]["num_steps"] == 3
    assert metadata["iterations"] == 7
    assert metadata["weights"] == "average"
    card = (output / "assets.extra" / "model_card.md").read_text().splitlines()
    assert "- Preset: dit_emoji16" in card
    assert "- Backend of training: jax" in card
    assert "- Licence of the data: Apache-2.0 (Noto Emoji, Copyright Google)" in card
    assert "- Guidance, recommended: 2.0" in card
    again = run_app("export", *arguments)
    assert again.returncode == 1
    assert "new or an empty folder" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.backend_free
def test_flags_that_mean_nothing_here_are_refused(run_app, tmp_path):
    process = run_app("export", f"--workdir={tmp_path}", f"--output={tmp_path / 'o'}", "--seed=3")
    assert process.returncode == 1
    assert "--seed is up to those who call the exported model" in process.stderr

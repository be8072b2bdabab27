import csv
import json

import keras
import numpy as np
import pytest

from keras_cdiff import evaluation, training
from keras_cdiff.training.building import build_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a finished run of a very small network, and its data."""
    folder = tmp_path_factory.mktemp("evaluate")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.repeat([0, 1], [16, 8]))
    config = training.resolve(
        "dit_emoji16", image_size=8, num_classes=2, data=f"npz:{folder / 'data.npz'}", steps=7
    )
    config["model"]["backbone"].update(width=16, depth=1, num_heads=2)
    config["sampling"]["num_steps"] = 2
    run = training.Workdir(folder / "run")
    run.claim(config)
    keras.utils.set_random_seed(0)
    model = build_model(config)
    model.iteration.assign(7)
    run.save_weights(model)
    return folder


@pytest.mark.one_backend
def test_a_run_is_evaluated_against_its_training_data(files, extractor_file, run_app, backend):
    arguments = (
        f"--workdir={files / 'run'}",
        f"--extractor=keras:{extractor_file}",
        "--num_samples=12",
        "--seed=5",
        "--num_steps=3",
        "--metrics=frechet_distance,precision_recall",
        backend,
    )
    process = run_app("evaluate", *arguments)
    assert process.returncode == 0, process.stderr
    (path,) = (files / "run" / "evaluation").glob("*.json")
    record = json.loads(path.read_text())
    generated, reference = record["generated"], record["reference"]
    assert generated["images"] == str(files / "run")
    assert (generated["count"], generated["seeds"]) == (12, [5, 16])
    assert (generated["num_steps"], generated["iteration"]) == (3, 7)
    assert generated["labels"] == {"0": 8, "1": 4}  # as the data has them
    assert (reference["count"], reference["image_size"]) == (24, [8, 8])
    assert record["extractor"]["name"] == "quadrants"
    assert sorted(record["metrics"]) == ["frechet_distance", "precision", "recall"]
    with open(files / "run" / "evaluation" / "evaluations.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["frechet_distance"]) == record["metrics"]["frechet_distance"]
    assert str(path) in process.stdout
    assert "biased" in process.stdout


@pytest.mark.backend_free
def test_images_are_evaluated_against_statistics(files, extractor_file, run_app, tmp_path):
    extractor = f"--extractor=keras:{extractor_file}"
    data, statistics = f"npz:{files / 'data.npz'}", tmp_path / "statistics.npz"
    process = run_app(
        "evaluate", f"--reference={data}", f"--write_statistics={statistics}", extractor
    )
    assert process.returncode == 0, process.stderr
    assert evaluation.FeatureStatistics.load(statistics).count == 24
    process = run_app(
        "evaluate",
        *(f"--images={data}", f"--reference=statistics:{statistics}", extractor),
        f"--output={tmp_path}",
    )
    assert process.returncode == 0, process.stderr
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["metrics"] == {
        "frechet_distance": pytest.approx(0, abs=1e-9)
    }


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --workdir"),
        (["--workdir=run", "--images=npz:a.npz"], "Give --workdir"),
        (["--images=npz:missing.npz", "--reference=emoji", "--output=out"], "no such file"),
        (
            ["--images=npz:a.npz", "--reference=emoji", "--output=out", "--num_samples=9"],
            "--num_samples concern samples of a model",
        ),
        (["--reference=emoji", "--write_statistics=emoji"], "ends in .npz"),
    ],
)
def test_what_cannot_be_done_is_said(
    extractor_file, run_app, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    process = run_app("evaluate", f"--extractor=keras:{extractor_file}", *arguments)
    assert process.returncode != 0
    assert message in process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.backend_free
def test_the_help_has_examples_and_shared_flags(run_app):
    process = run_app("evaluate", "--help")
    assert "python apps/evaluate.py --workdir=" in process.stdout
    assert "--guidance_interval" in process.stdout

"""One run of the table, from its images to its record."""

import dataclasses
import json
import signal

import pytest

from keras_cdiff import training
from keras_cdiff.data import open_source

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def small_run(program, tmp_path_factory):
    """A run of the smallest size whose stages change, and the folder of its data."""
    folder = tmp_path_factory.mktemp("evidence")
    for _ in range(2):  # the second time there is nothing to do
        program.data_sets.prepare("emoji", folder / "data")
    options = {"num_clusters": 2, "patience": 1, "jit_compile": False}
    staged = dataclasses.replace(program.settings.METHODS["curriculum"], options=options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(program.settings.METHODS, "curriculum", staged)
        yield program.settings.find_run("smoke", "emoji_edm/curriculum/lr0.004/seed1"), folder


def test_the_emoji_are_parted_once_and_for_all(small_run):
    parts = [open_source(f"npz:{path}") for path in sorted((small_run[1] / "data").iterdir())]
    assert [len(part) for part in parts] == [164, 1472]
    images = {part[index]["image"].tobytes() for part in parts for index in range(len(part))}
    everyone = open_source("emoji")
    assert images == {everyone[index]["image"].tobytes() for index in range(len(everyone))}


def test_an_interrupted_run_leaves_the_record_of_one_that_was_not(
    program, small_run, extractor_file, tmp_path, signal_at, monkeypatch
):
    run, folder = small_run
    extractor = f"keras:{extractor_file}"
    records, images = [], []
    for output in (tmp_path / "whole", tmp_path / "interrupted"):
        output.mkdir()
        (output / "data").symlink_to(folder / "data")
        if output.name == "interrupted":
            with pytest.raises(training.Interrupted), signal_at(18, signal.SIGTERM):
                program.one_run.train(run, "smoke", output)
        program.one_run.train(run, "smoke", output)
        drawn = output / "smoke" / "runs" / run.name / "images"
        images.append({path.name: path.read_bytes() for path in drawn.iterdir()})
        records.append(program.measure.measure(run, "smoke", output, extractor))
    assert [*map(sorted, images)] == [["00000015.npz", "00000030.npz", "final.npz"]] * 2
    assert images[0] == images[1]
    times = ("seconds_per_step", "training_seconds", "measuring_seconds")
    record, resumed = ({k: v for k, v in r.items() if k not in times} for r in records)
    assert record == resumed
    assert all(records[0][name] > 0.0 for name in times)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["stages"] == [{"stage": 2, "step": 15}]
    assert record["reference_images"] == 1472
    assert record["final_samples"] == 32
    assert record["data"] == "emoji_train.npz"
    assert record["study_steps"] == 0
    assert record["extractor"]["image_size"] == [8, 8]
    assert all(len(point["cluster_loss"]) == 5 for point in record["curve"])
    assert record["final"]["frechet_distance"] > 0.0

    # What is there is not drawn again, and a lost set of samples is, the same.
    def refuse(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(program.one_run.Samples, "write", refuse)
    program.one_run.train(run, "smoke", output)


def test_samples_of_latents_are_compared_with_the_images_they_were_made_of(program, small_run):
    run, folder = small_run
    images = f"npz:{folder / 'data' / 'emoji_train.npz'}"
    config = program.one_run.configuration(run, "smoke", folder)
    setting = program.settings.SIZES["smoke"][run.setting]
    config["data"] = "latents:/nowhere"
    config["autoencoder"] = {"images": images, "image_size": 24}
    reference = program.measure._reference(config, setting, None)
    assert (reference.name, len(reference)) == (images, 1472)
    assert next(reference.batches(0, 2))[0].shape == (24, 24, 3)
    assert program.measure._reference(config, setting, "emoji").name == "emoji"

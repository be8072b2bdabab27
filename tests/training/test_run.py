import json
import math
import shutil
import signal

import keras
import numpy as np
import pytest
from PIL import Image

import keras_cdiff
from keras_cdiff import training
from keras_cdiff.training.checkpoint import read_checkpoint


def array(x):
    return keras.ops.convert_to_numpy(x)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny, npz, extractor_file):
    """A run of two stages in nine steps, evaluated: its folder, configuration and model."""
    workdir = tmp_path_factory.mktemp("runs") / "paper"
    config = tiny(
        **{"steps": 9, "num_clusters": 2, "patience": 1, "log_every": 2, "sample_every": 5},
        **{"evaluate_every": 4, "evaluate_samples": 6, "extractor": f"keras:{extractor_file}"},
        **{"validate_every": 4, "validation_data": npz(), "validation_images": 5},
        **{"checkpoint_every": 4, "keep_last": 1, "global_clipnorm": 1.0},
    )
    return workdir, config, training.train(config, workdir)


def test_a_run_keeps_its_configuration_with_the_classes_of_the_data(finished):
    workdir, config, model = finished
    kept = training.Workdir(workdir).config()
    assert config["model"]["backbone"]["num_classes"] is None  # the caller's stays as it was
    assert kept["model"]["backbone"].pop("num_classes") == 3 == model.num_classes
    assert config["model"]["backbone"].items() >= kept["model"]["backbone"].items()
    kept["model"].pop("backbone")
    assert kept == {
        **config,
        "model": {k: v for k, v in config["model"].items() if k != "backbone"},
    }


def test_a_run_logs_each_interval_with_its_stage(finished, read_log):
    workdir, config, _ = finished
    records = read_log(workdir)
    assert [record["step"] for record in records] == [2, 4, 6, 8, 9]
    stages = [record["stage"] for record in records]
    assert stages[0] == 1
    assert stages == sorted(stages)
    edges = config["curriculum"]["edges"]
    assert edges[0] == 0.0
    assert edges[2] == "inf"
    for record in records:
        assert float(record["interval"][0]) == pytest.approx(edges[2 - record["stage"]])
        assert record["interval"][1] == "inf"
        assert record["cluster_edges"] == edges
        assert len(record["cluster_loss"]) == 2
        assert math.isfinite(record["loss"])
        assert record["seconds_per_step"] > 0
        assert record["images"] == 4 * record["step"]
    # At stage 1 the model sees the noisier cluster alone.
    assert records[0]["cluster_loss"][0] is None
    assert records[0]["cluster_loss"][1] > 0
    assert records[-1]["learning_rate"] == pytest.approx(2e-3 * 9 / 100)


def test_a_run_is_evaluated_now_and_then(finished, read_log, read_events):
    workdir, config, _ = finished
    evaluations = read_log(workdir, "evaluations.jsonl")
    assert [record["step"] for record in evaluations] == [4, 8, 9]
    for record in evaluations:
        assert record["generated"]["count"] == 6
        assert record["generated"]["iteration"] == record["step"]
        assert record["generated"]["labels"] == {"0": 2, "1": 2, "2": 2}  # as the data: 6, 5, 5
        assert record["reference"]["count"] == 16
        assert record["metrics"]["frechet_distance"] > 0
    validations = read_log(workdir, "validation.jsonl")
    assert [record["step"] for record in validations] == [4, 8, 9]
    for record in validations:
        # The same grid at every stage: the curriculum's clusters, cut off where no level is drawn.
        assert record["cluster_edges"][1] == config["curriculum"]["edges"][1]
        assert record["levels"] == validations[0]["levels"]
        assert len(record["cluster_loss"]) == 2
        assert record["num_images"] == 5
    shown = [event.value for event in read_events(workdir).Scalars("evaluation/frechet_distance")]
    expected = [record["metrics"]["frechet_distance"] for record in evaluations]
    assert shown == pytest.approx(expected)


def test_tensorboard_shows_what_the_log_holds(finished, read_log, read_events):
    workdir, *_ = finished
    records, events = read_log(workdir), read_events(workdir)
    for tag, name in (
        ("loss", "loss"),
        ("curriculum/stage", "stage"),
        ("learning_rate", "learning_rate"),
    ):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(record["step"], pytest.approx(record[name])) for record in records]
        assert shown == expected
    lows = [event.value for event in events.Scalars("curriculum/interval_low")]
    assert lows == pytest.approx([float(record["interval"][0]) for record in records])
    highs = [event.value for event in events.Scalars("curriculum/interval_high")]
    assert highs == [math.inf] * len(records)
    easiest = [event.value for event in events.Scalars("cluster_loss/02")]
    assert easiest[0] == pytest.approx(records[0]["cluster_loss"][1])


def test_grids_of_samples_are_on_disk_and_in_tensorboard(finished, read_events):
    workdir, *_ = finished
    names = ["step_000006.png", "step_000009.png"]
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == names
    images = read_events(workdir).Images("samples")
    assert [event.step for event in images] == [6, 9]
    grid = (workdir / "samples" / names[-1]).read_bytes()
    with Image.open(workdir / "samples" / names[-1]) as image:
        assert image.size == (8 * 66 + 2, 4 * 66 + 2)
        assert (images[-1].width, images[-1].height) == image.size
    assert grid != (workdir / "samples" / names[0]).read_bytes()


def test_raw_and_averaged_weights_come_back_with_the_run(finished):
    workdir, _, model = finished
    restored, config = training.load_run(workdir)
    assert config == training.Workdir(workdir).config()
    for network in ("backbone", "ema_backbone"):
        expected = getattr(model, network).weights
        for got, want in zip(getattr(restored, network).weights, expected, strict=True):
            np.testing.assert_array_equal(array(got), array(want))
    raw, average = model.backbone.weights, model.ema_backbone.weights
    assert any(np.any(array(a) != array(b)) for a, b in zip(raw, average, strict=True))


def test_a_run_that_is_not_finished_is_loaded_from_its_newest_checkpoint(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    training.Workdir(workdir).weights_step_file.unlink()
    for step in (None, 9):
        restored = keras_cdiff.load(workdir, step)
        assert array(restored.iteration) == 9
        for got, want in zip(restored.weights, finished[2].weights, strict=True):
            np.testing.assert_array_equal(array(got), array(want))
    with pytest.raises(ValueError, match=r"keeps the steps 9: .*Received: step=5"):
        keras_cdiff.load(workdir, step=5)


def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    finished, tmp_path, read_log, read_events, signal_at, capsys
):
    workdir, config, model = finished
    # Within a log interval, in which a grid of samples is due since that step.
    with (
        signal_at(5, signal.SIGTERM),
        pytest.raises(training.Interrupted, match="SIGTERM at step 5"),
    ):
        training.train(config, tmp_path)
    assert "wrote" not in capsys.readouterr().out
    resumed = training.train(config, tmp_path)
    assert "goes on from step 5" in capsys.readouterr().out
    for network in ("backbone", "ema_backbone"):
        for got, want in zip(
            getattr(resumed, network).weights, getattr(model, network).weights, strict=True
        ):
            np.testing.assert_array_equal(array(got), array(want))
    (arrays, _), (expected, _) = (
        read_checkpoint(folder / "checkpoints" / "step_00000009.zip")
        for folder in (tmp_path, workdir)
    )
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    for log in ("log.jsonl", "evaluations.jsonl", "validation.jsonl"):
        assert timeless(read_log(tmp_path, log)) == timeless(read_log(workdir, log))
    for grid in (workdir / "samples").iterdir():
        assert (tmp_path / "samples" / grid.name).read_bytes() == grid.read_bytes()
    one, other = (read_events(folder).Scalars("loss") for folder in (tmp_path, workdir))
    assert [(e.step, e.value) for e in one] == [(e.step, e.value) for e in other]


def timeless(records):
    """The records without what the clock says."""
    if isinstance(records, list):
        return [timeless(record) for record in records]
    if isinstance(records, dict):
        clock = ("time", "seconds", "seconds_per_step")
        return {name: timeless(value) for name, value in records.items() if name not in clock}
    return records


def test_the_same_command_on_a_finished_run_is_refused(finished):
    workdir, config, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(ValueError, match="finished run"):
        training.train(config, workdir)
    with pytest.raises(ValueError, match="seed was 0 and is now 1"):
        training.train({**config, "seed": 1}, workdir)
    with pytest.raises(ValueError, match=r"finished run.*with 9 steps"):
        training.train({**config, "training": {**config["training"], "steps": 8}}, workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.one_backend
def test_grey_images_in_bfloat16_without_labels_curriculum_or_average(
    tmp_path, tiny, npz, read_log, capsys
):
    config = tiny(
        {"channels": 1},
        data=npz(0),
        num_classes=0,
        curriculum="none",
        dtype_policy="mixed_bfloat16",
        log_every=5,
        steps=2,
    )
    config["model"]["ema"] = None
    model = training.train(config, tmp_path)
    assert model.backbone.compute_dtype == "bfloat16"
    (record,) = read_log(tmp_path)
    assert (record["step"], record["stage"], record["interval"]) == (2, 0, [0.0, "inf"])
    kept = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert kept == ["raw.weights.h5", "step.json"]
    with Image.open(tmp_path / "samples" / "step_000002.png") as image:
        assert image.mode == "L"
    assert "stage" not in capsys.readouterr().out


@pytest.mark.one_backend
def test_the_console_shows_stage_interval_and_why_it_ended(tmp_path, tiny, capsys):
    config = tiny(steps=6, num_clusters=2, patience=1, log_every=3)
    config["training"]["learning_rate"] = 1e-12  # no loss improves for long
    training.train(config, tmp_path)
    shown = capsys.readouterr().out
    edge = config["curriculum"]["edges"][1]
    assert f"Curriculum stage 1/2 at iteration 0: sigma in [{edge:.4g}, inf) (training" in shown
    assert "Curriculum stage 2/2 at iteration" in shown
    assert "sigma in [0, inf) (stage 1 ended: no improvement on" in shown
    assert "step 3/6  12 images  loss " in shown


@pytest.mark.backend_free
def test_a_run_that_failed_leaves_no_weights_and_begins_anew(tmp_path, tiny, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    config = tiny()
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, tmp_path)
    assert not list((tmp_path / "weights").iterdir())
    training.Workdir(tmp_path).check(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "npz:nowhere.npz"}, "no such file.*nowhere"),
        ({"data": "folder:nowhere"}, "no such folder.*nowhere"),
        ({"data": "flowers"}, "emoji, npz:PATH.*flowers"),
        ({"batch_size": 17}, "batch_size=17"),
        ({"num_classes": 2}, "3 classes, more than the model.*num_classes=2"),
    ],
)
def test_data_that_cannot_be_used_leaves_no_workdir(tmp_path, tiny, arguments, message):
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        training.train(tiny(**arguments), workdir)
    assert not workdir.exists()


@pytest.mark.backend_free
@pytest.mark.parametrize("num_classes", [None, 8])
def test_a_class_conditional_preset_refuses_unlabelled_data(tmp_path, tiny, npz, num_classes):
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=r"labelled data.*num_classes=0.*0_classes\.npz"):
        training.train(tiny(data=npz(0), num_classes=num_classes), workdir)
    assert not workdir.exists()


@pytest.mark.backend_free
def test_an_unreadable_image_is_named(tmp_path, tiny):
    folder = tmp_path / "images" / "class"
    folder.mkdir(parents=True)
    for name in "abcd":
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    (folder / "c.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cannot read this image.*c\.png"):
        training.train(tiny(data=f"folder:{tmp_path / 'images'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.backend_free
def test_latent_presets_are_refused_before_any_data_is_opened(tmp_path):
    config = training.resolve("dit_s_8_imagenet256", data="npz:nowhere.npz")
    with pytest.raises(ValueError, match=r"works on latents.*dit_s_8_imagenet256"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

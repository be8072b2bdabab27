import json
import shutil

import numpy as np
import pytest

from keras_cdiff import training
from keras_cdiff.training.workdir import load_network

pytestmark = pytest.mark.backend_free


def weights_of(network):
    return [np.array(weight) for weight in network.get_weights()]


def files_under(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_claimed_workdir_holds_its_configuration_and_an_empty_log(tmp_path, tiny):
    config = tiny()
    workdir = training.Workdir(tmp_path / "new" / "run")
    workdir.claim(config)
    assert json.loads((workdir.path / "config.json").read_text()) == config
    assert workdir.config() == config
    assert (workdir.path / "log.jsonl").read_text() == ""
    assert not list(workdir.path.rglob("writing-*"))


def test_an_unfinished_run_begins_anew(tmp_path, tiny):
    workdir = training.Workdir(tmp_path)
    workdir.claim(tiny())
    workdir.log_file.write_text("old\n")
    for stale in (workdir.samples / "step_000001.png", workdir.tensorboard / "events.out.1"):
        stale.write_text("old")
    for half in (tmp_path / "writing-1-config.json", workdir.weights / "writing-1-ema.weights.h5"):
        half.write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    workdir.claim(tiny())
    assert {path.name for path in files_under(tmp_path)} == {
        "config.json",
        "log.jsonl",
        "notes.txt",
    }
    assert workdir.log_file.read_text() == ""


def test_another_configuration_is_refused_with_every_difference(tmp_path, tiny):
    workdir = training.Workdir(tmp_path)
    workdir.claim(tiny())
    before = files_under(tmp_path)
    with pytest.raises(ValueError) as raised:
        workdir.claim(tiny({"width": 32}, seed=1, curriculum="none"))
    message = str(raised.value)
    assert str(tmp_path) in message
    assert "seed was 0 and is now 1" in message
    assert "model.backbone.width was 16 and is now 32" in message
    assert "curriculum was" in message
    assert "training" not in message.split("where\n")[1]
    assert files_under(tmp_path) == before


def test_a_finished_run_is_refused(tmp_path, tiny, make_model):
    workdir = training.Workdir(tmp_path)
    workdir.claim(tiny())
    model = make_model()
    model.iteration.assign(tiny()["training"]["steps"])
    workdir.save_weights(model)
    before = files_under(tmp_path)
    with pytest.raises(ValueError, match=r"finished run.*apps/sample\.py"):
        workdir.claim(tiny())
    assert files_under(tmp_path) == before
    workdir.check(tiny(steps=4))  # it may be trained further


def test_a_full_disk_is_told_before_weights_are_written(tmp_path, tiny, make_model, monkeypatch):
    workdir = training.Workdir(tmp_path)
    workdir.claim(tiny())
    workdir.save_weights(make_model())
    before = files_under(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=f"No space left on device: .*{workdir.weights.name}"):
        workdir.save_weights(make_model())
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("name", ["log.jsonl", "weights"])
def test_files_of_another_origin_are_left_alone(tmp_path, tiny, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name} but no config.json"):
        training.Workdir(tmp_path).claim(tiny())
    assert files_under(tmp_path) == {tmp_path / name: b"mine"}


def test_a_file_is_no_workdir(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder"):
        training.Workdir(tmp_path / "file").claim(tiny())


def test_a_damaged_configuration_is_named(tmp_path, tiny):
    for damaged in ("{", "", "[]"):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"config\.json is damaged.*checkpoint's manifest"):
            training.Workdir(tmp_path).claim(tiny())
    with pytest.raises(ValueError, match=r"with a config\.json in it"):
        training.Workdir(tmp_path / "nowhere").config()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_configuration_that_json_cannot_hold_is_not_half_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        training.Workdir(tmp_path).claim({"learning_rate": value})
    assert not files_under(tmp_path)


def test_raw_and_averaged_weights_are_kept_apart(tmp_path, tiny, make_model):
    workdir = training.Workdir(tmp_path)
    workdir.claim(tiny())
    model = make_model(seed=1)
    for weight in model.ema_backbone.weights:
        weight.assign(weight + 1.0)
    model.iteration.assign(5)
    workdir.save_weights(model)
    kept = {"raw.weights.h5", "ema.weights.h5", "step.json"}
    assert {path.name for path in workdir.weights.iterdir()} == kept
    restored = make_model(seed=2)
    workdir.load_weights(restored)
    assert int(restored.iteration) == 5
    for network in ("backbone", "ema_backbone"):
        expected = weights_of(getattr(model, network))
        for got, want in zip(weights_of(getattr(restored, network)), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_without_an_average_there_are_raw_weights_alone(tmp_path, tiny, make_model):
    workdir = training.Workdir(tmp_path)
    workdir.claim(tiny())
    workdir.save_weights(make_model(average=None))
    kept = {path.name for path in workdir.weights.iterdir()}
    assert kept == {"raw.weights.h5", "step.json"}
    workdir.load_weights(make_model(average=None))


def test_an_unfinished_run_has_no_weights_to_load(tmp_path, tiny, make_model):
    workdir = training.Workdir(tmp_path)
    workdir.claim(tiny())
    with pytest.raises(ValueError, match="has not been finished"):
        workdir.load_weights(make_model())


@pytest.mark.parametrize(
    "network",
    [{"width": 32}, {"num_classes": 4}, {"depth": 2}, {"channels": 1}, {"patch_size": 4}],
)
def test_the_weights_of_another_network_are_refused(tmp_path, make_model, network):
    path = tmp_path / "other.weights.h5"
    make_model(**{"depth": 1, **network}).backbone.save_weights(path)
    with pytest.raises(ValueError, match=r"this preset's network.*other\.weights\.h5"):
        load_network(make_model(depth=1).backbone, path)


def test_the_weights_of_a_deeper_or_no_network_are_refused(tmp_path, make_model):
    network = make_model(depth=2).backbone
    with pytest.raises(ValueError, match="no such weights file"):
        load_network(network, tmp_path / "none.weights.h5")
    damaged = tmp_path / "damaged.weights.h5"
    damaged.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="this preset's network"):
        load_network(network, damaged)
    shallow = tmp_path / "shallow.weights.h5"
    make_model(depth=1).backbone.save_weights(shallow)
    with pytest.raises(ValueError, match="this preset's network"):
        load_network(network, shallow)

"""Runs that were interrupted, damaged or out of luck, and what the same command makes of them."""

import errno
import os
import shutil
import signal

import keras
import numpy as np
import pytest

from keras_cdiff import training
from keras_cdiff.data import ArraySource, make_dataset
from keras_cdiff.training import checkpoint, run_data
from keras_cdiff.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def settings(tiny):
    return tiny(steps=6, log_every=2, checkpoint_every=2, num_clusters=2, patience=1)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, settings, signal_at):
    """The folder of a run that was interrupted at step 5 of 6, and is not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    with (
        signal_at(5, signal.SIGINT),
        pytest.raises(training.Interrupted, match="SIGINT at step 5, with a checkpoint"),
    ):
        training.train(settings, folder)
    assert checkpoints(folder) == [2, 4, 5]
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, interrupted, settings):
    """The same run after it has gone on to its end, not to be changed either."""
    folder = shutil.copytree(interrupted, tmp_path_factory.mktemp("runs") / "finished")
    training.train(settings, folder)
    return folder


@pytest.fixture
def workdir(tmp_path, interrupted):
    """A copy of the interrupted run."""
    return shutil.copytree(interrupted, tmp_path / "run")


def checkpoints(workdir):
    return training.CheckpointFolder(workdir / "checkpoints").steps()


def changed(config, **values):
    return {**config, "training": {**config["training"], **values}}


def files_of(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != "lock"}


def assert_same_state(one, other):
    arrays, expected = (read_checkpoint(path)[0] for path in (one, other))
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    workdir, finished, settings, read_log, capsys
):
    newest = workdir / "checkpoints" / "step_00000005.zip"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="Passed over a damaged checkpoint.*step_00000005"):
        training.train(settings, workdir)
    assert "goes on from step 4" in capsys.readouterr().out
    assert newest.with_name("damaged-step_00000005.zip").exists()
    last = "checkpoints/step_00000006.zip"
    assert_same_state(workdir / last, finished / last)
    records, expected = read_log(workdir), read_log(finished)
    assert [record["step"] for record in records] == [2, 4, 6]
    assert [record["loss"] for record in records] == [record["loss"] for record in expected]


def test_a_finished_run_is_trained_further_with_more_steps(
    tmp_path, finished, settings, read_log, signal_at
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(ValueError, match=r"finished run.*more --steps.*with 6 steps"):
        training.train(settings, workdir)
    with signal_at(7, signal.SIGTERM), pytest.raises(training.Interrupted):
        training.train(changed(settings, steps=8, log_every=3), workdir)
    # What was finished can be sampled from, until there is more.
    before, _ = training.load_run(workdir)
    assert int(keras.ops.convert_to_numpy(before.iteration)) == 6
    model = training.train(changed(settings, steps=8, log_every=3), workdir)
    assert int(keras.ops.convert_to_numpy(model.iteration)) == 8
    after, config = training.load_run(workdir)
    assert int(keras.ops.convert_to_numpy(after.iteration)) == 8 == config["training"]["steps"]
    # The log interval is another one now: 3, 6, 9.
    assert [record["step"] for record in read_log(workdir)] == [2, 4, 6, 8]
    assert checkpoints(workdir) == [6, 7, 8]
    shutil.rmtree(workdir / "checkpoints")
    before = files_of(workdir)
    with pytest.raises(ValueError, match="without its last checkpoint"):
        training.train(changed(settings, steps=9), workdir)
    assert files_of(workdir) == before


def test_what_cannot_go_on_is_refused_and_left_alone(workdir, settings, monkeypatch):
    before = files_of(workdir)
    with pytest.raises(ValueError, match=r"taken 5 steps already.*Received: .*steps=4"):
        training.train(changed(settings, steps=4), workdir)
    with pytest.raises(ValueError, match=r"training\.batch_size was 4 and is now 2$"):
        training.train(changed(settings, batch_size=2, log_every=7), workdir)
    with monkeypatch.context() as patch:
        images, labels = np.zeros((20, 8, 8, 3), "uint8"), np.arange(20) % 3
        patch.setattr(run_data, "open_source", lambda name: ArraySource(name, images, labels))
        with pytest.raises(
            ValueError, match=r"(?s)data has changed.*data\.images was 16 and is now 20"
        ):
            training.train(settings, workdir)
        names = np.array(["a", "b", "c"])
        source = ArraySource("a", images[:16], labels[:16], class_names=names)
        patch.setattr(run_data, "open_source", lambda name: source)
        with pytest.raises(
            ValueError, match=r"data\.class_names was \[\] and is now \['a', 'b', 'c'\]"
        ):
            training.train(settings, workdir)
    with (
        training.Workdir(workdir).lock(),
        pytest.raises(ValueError, match=f"in use by process {os.getpid()}"),
    ):
        training.train(settings, workdir)
    assert files_of(workdir) == before

    newest = workdir / "checkpoints" / "step_00000005.zip"
    arrays, metadata = read_checkpoint(newest)
    for wrong in ({}, {"config": {**metadata["metadata"]["config"], "seed": 7}}):
        checkpoint.write_checkpoint(newest, arrays, {"step": 5, "metadata": wrong})
        with pytest.raises(
            ValueError, match=r"(?s)step 5 belongs to another run.*seed was (None|7) "
        ):
            training.train(settings, workdir)
    for path in (workdir / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    before = files_of(workdir)
    with (
        pytest.warns(UserWarning, match="Passed over"),
        pytest.raises(training.DamagedCheckpoint, match=r"No checkpoint.*steps \[2, 4, 5\]"),
    ):
        training.train(settings, workdir)
    assert files_of(workdir) == before


def test_a_full_disk_ends_the_run_with_earlier_checkpoints_intact(tmp_path, settings, monkeypatch):
    write = checkpoint.write_checkpoint

    def full_at_four(path, arrays, metadata):
        if metadata["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, arrays, metadata)

    monkeypatch.setattr(checkpoint, "write_checkpoint", full_at_four)
    with pytest.raises(OSError, match=r"step 4 could not be written \(No space left on device"):
        training.train(settings, tmp_path)
    assert training.CheckpointFolder(tmp_path / "checkpoints").latest()[0] == 2


def test_a_loss_that_stays_infinite_ends_the_run_and_spares_the_average(tmp_path, settings):
    config = changed(settings, learning_rate=1e25, max_nonfinite=1)
    config["training"]["warmup_steps"] = 0
    config["checkpoints"] = {"every": 1, "keep_last": 1, "keep_every": None}
    with pytest.raises(
        FloatingPointError, match=r"max_nonfinite=1, at iteration 3 .*step_00000001"
    ):
        training.train(config, tmp_path)
    assert checkpoints(tmp_path) == [1]  # steps that were skipped have displaced nothing
    arrays, _ = read_checkpoint(tmp_path / "checkpoints" / "step_00000001.zip")
    for name, array in arrays.items():
        if name.startswith(("backbone", "average", "optimizer")):
            assert np.isfinite(array).all(), name


def test_an_example_that_cannot_be_read_any_more_is_named(tmp_path, settings, monkeypatch):
    class Truncated(ArraySource):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("file is truncated")
            return super().__getitem__(index)

    images, labels = np.zeros((16, 8, 8, 3), "uint8"), np.arange(16) % 3
    monkeypatch.setattr(run_data, "open_source", lambda name: Truncated("photos", images, labels))
    with pytest.raises(ValueError, match=r"example 7 of 'photos' \(OSError: file is truncated\)"):
        training.train(settings, tmp_path)


class StepsSeen(keras.callbacks.Callback):
    """Remembers the loss of each step."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["batch_loss"]))


def test_checkpoints_serve_a_fit_of_ones_own(tmp_path, make_model, batch, quick):
    images, labels = batch
    source = ArraySource("images", ((images + 1) * 127.5).astype("uint8"), labels)

    def train(epochs, every):
        keras.utils.set_random_seed(0)
        model, seen = make_model(average=None), StepsSeen()
        model.compile(keras.optimizers.AdamW(1e-3), **quick)
        step = training.resume(model, tmp_path / "checkpoints")
        batches = make_dataset(source, 8, 4, start_step=step)
        model.fit(
            batches,
            steps_per_epoch=3,
            initial_epoch=step // 3,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[seen, training.CheckpointCallback(tmp_path / "checkpoints", every)],
        )
        return seen.losses

    first = train(epochs=1, every=2)
    assert checkpoints(tmp_path) == [2, 3]
    rest = train(epochs=3, every=2)
    assert checkpoints(tmp_path) == [6, 8, 9]
    fresh = make_model(average=None)
    with pytest.raises(ValueError, match=r"before resume\(\)"):
        training.resume(fresh, tmp_path / "checkpoints")
    callback = training.CheckpointCallback(tmp_path / "checkpoints")
    callback.set_model(fresh)
    with pytest.raises(ValueError, match=r"later steps, \[6, 8, 9\], than the model's 0"):
        callback.on_train_begin()
    shutil.rmtree(tmp_path / "checkpoints")
    assert first + rest == train(epochs=3, every=100)
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"Received: every={every!r}"):
            training.CheckpointCallback(tmp_path, every)

"""Checkpoint files: what comes back is what was written, or a clear error."""

import errno
import os
import pickle
import time
import zipfile

import forked
import ml_dtypes
import numpy as np
import pytest

from keras_cdiff.training import checkpoint
from keras_cdiff.training.checkpoint import (
    CheckpointFolder,
    DamagedCheckpoint,
    read_checkpoint,
    write_checkpoint,
)

pytestmark = pytest.mark.backend_free

METADATA = {"config": {"seed": 3, "name": "naïve"}, "rates": [0.1, None, True]}


def make_arrays():
    rng = np.random.default_rng(0)
    return {
        "backbone/000/kernel": rng.normal(size=(3, 4)).astype("float32"),
        "half": rng.normal(size=5).astype("float16"),
        "brain": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "brain/scalar": np.array(1.5, ml_dtypes.bfloat16),
        "turned": np.asfortranarray(rng.normal(size=(2, 3))),
        "step": np.array(7, "int64"),
        "seeds": np.array([1, 2**32 - 1], "uint32"),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 3), "float32"),
        "special": np.array([np.nan, np.inf, -0.0], "float32"),
    }


def assert_same(received, expected):
    assert list(received) == list(expected)
    for name, array in expected.items():
        assert received[name].dtype == array.dtype, name
        assert received[name].shape == array.shape, name
        assert received[name].tobytes() == array.tobytes(), name


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "new" / "one.zip"
    write_checkpoint(path, make_arrays(), METADATA)
    arrays, metadata = read_checkpoint(path)
    assert_same(arrays, make_arrays())
    assert metadata == METADATA
    assert all(array.flags.writeable for array in arrays.values())
    assert [p.name for p in path.parent.iterdir()] == ["one.zip"]
    # The same content gives the same bytes, and NumPy's own reader knows the file.
    write_checkpoint(tmp_path / "two.zip", make_arrays(), METADATA)
    assert (tmp_path / "two.zip").read_bytes() == path.read_bytes()
    with open(path, "rb") as stream, np.load(stream) as file:
        np.testing.assert_array_equal(file["turned"], arrays["turned"])
    write_checkpoint(path, {"big": np.arange(3, dtype=">i4")}, {})
    assert read_checkpoint(path)[0]["big"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "mask", [0x01, *(pytest.param(mask, marks=pytest.mark.exhaustive) for mask in (0x80, 0xFF))]
)
def test_no_damage_goes_unnoticed(tmp_path, mask):
    arrays, path = {k: make_arrays()[k] for k in ("half", "brain", "step")}, tmp_path / "one.zip"
    write_checkpoint(path, arrays, METADATA)
    whole = path.read_bytes()
    copies = [whole[:length] for length in range(0, len(whole), 3)]
    copies += [whole[:i] + whole[i + 1 + i % 5 :] for i in range(0, len(whole), 3)]
    copies += [whole[:i] + bytes(4) + whole[i:] for i in range(0, len(whole), 7)]
    copies += [whole[:i] + bytes([whole[i] ^ mask]) + whole[i + 1 :] for i in range(len(whole))]
    refused = 0
    for copy in copies:
        path.write_bytes(copy)
        try:
            received, metadata = read_checkpoint(path)
        except DamagedCheckpoint as error:
            refused += "one.zip" in str(error)
        else:  # a byte that carries nothing, such as a date
            assert_same(received, arrays)
            assert metadata == METADATA
    assert refused > len(copies) / 2


def test_arrays_of_another_checkpoint_are_noticed(tmp_path):
    """Though the archive itself is whole."""
    path, other = tmp_path / "one.zip", tmp_path / "other.zip"
    write_checkpoint(path, {"a": np.zeros(3)}, METADATA)
    write_checkpoint(other, {"a": np.ones(3)}, METADATA)
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(other) as theirs:
        members = {name: ours.read(name) for name in ours.namelist()}
        members["a.npy"], comment = theirs.read("a.npy"), ours.comment
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    with pytest.raises(DamagedCheckpoint, match="the checksum of 'a' is wrong"):
        read_checkpoint(path)


def test_other_files_are_refused_and_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "unpickled"),)

    bomb, path = pickle.dumps(Bomb()), tmp_path / "other.zip"

    def refused():
        with pytest.raises(DamagedCheckpoint, match=r"Received: path=.*other\.zip"):
            read_checkpoint(path)

    refused()  # missing
    path.mkdir()
    refused()
    path.rmdir()
    for content in (b"", bomb, b"PK\x05\x06" + bytes(18), os.urandom(500)):
        path.write_bytes(content)
        refused()
    np.savez(path, a=np.array([Bomb()], object))
    refused()
    # A coherent file, with all checksums right, around an array of pickled objects.
    objects = np.empty(1, object)
    objects[0] = Bomb()
    original = np.lib.format.write_array
    with pytest.MonkeyPatch.context() as patch:

        def pickled(stream, array, allow_pickle):
            original(stream, objects, allow_pickle=True)

        patch.setattr(np.lib.format, "write_array", pickled)
        write_checkpoint(path, {"a": np.zeros(1)}, {})
    refused()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_FORMAT", 2)
        write_checkpoint(path, {"a": np.zeros(1)}, {})
    refused()
    write_checkpoint(path, {"a": np.zeros(1)}, {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.npy", bomb)
    refused()
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        ({"a": np.array([None])}, {}),
        ({"a": np.array(["text"])}, {}),
        ({"a": np.zeros(1, "f4,i4")}, {}),
        ({"": np.zeros(1)}, {}),
        ({"a\0b": np.zeros(1)}, {}),
        ({}, {"rate": float("nan")}),
        ({}, {"rate": np.zeros(2)}),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, arrays, metadata):
    with pytest.raises(ValueError, match="Received: "):
        write_checkpoint(tmp_path / "one.zip", arrays, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_keeps_the_last_and_every_mth(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=2, keep_every=4)
    assert folder.steps() == []
    assert folder.latest() is None
    folder.path.mkdir()
    leftover = folder.path / "writing-1-step_00000009.zip"
    leftover.write_bytes(b"half")
    for step in range(1, 12):
        folder.save(step, {"a": np.full(2, step)}, {"loss": step / 2})
    assert not leftover.exists()
    assert folder.steps() == [4, 8, 10, 11]
    step, arrays, metadata = folder.latest()
    assert (step, arrays["a"].tolist(), metadata) == (11, [11, 11], {"loss": 5.5})
    for name in ("keep_last", "keep_every"):
        with pytest.raises(ValueError, match=f"Received: {name}=0"):
            CheckpointFolder(tmp_path, **{name: 0})


def test_what_was_kept_before_is_left_alone(tmp_path):
    for step in range(1, 7):
        CheckpointFolder(tmp_path, keep_last=9).save(step, {}, {})
    folder = CheckpointFolder(tmp_path, keep_last=2)  # perhaps a flag was forgotten
    for step in (7, 8, 9):
        folder.save(step, {}, {})
    assert folder.steps() == [1, 2, 3, 4, 8, 9]


def test_a_checkpoint_that_cannot_be_read_now_is_not_passed_over(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(step, {}, {})
    for number in (errno.EACCES, errno.EIO):

        def refuse(path, *mode, number=number):
            raise OSError(number, os.strerror(number), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "open", refuse, raising=False)
            with pytest.raises(OSError, match="step_00000002"):
                folder.latest()
    assert folder.latest()[0] == 2
    folder.set_aside(1)
    assert folder.latest()[0] == 1
    assert folder.steps() == [1]
    assert (tmp_path / "damaged-step_00000002.zip").exists()


def test_a_damaged_checkpoint_is_reported_and_passed_over(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_every=10)
    folder.save(10, {"a": np.zeros(3)}, {})
    folder.file(20).write_bytes(folder.file(10).read_bytes())  # a checkpoint of another step
    folder.file(30).write_bytes(folder.file(10).read_bytes()[:-9])
    with pytest.warns(UserWarning, match="Passed over a damaged .*step_000000") as caught:
        assert folder.latest()[0] == 10
    assert ["step_00000030" in str(caught[0].message), len(caught)] == [True, 2]
    # The run goes on from step 10: its checkpoints are not displaced by later damaged ones.
    folder.save(15, {"a": np.ones(3)}, {})
    assert folder.steps() == [10, 15, 20, 30]
    with pytest.warns(UserWarning, match="Passed over"):
        assert folder.latest()[0] == 15


def test_a_full_disk_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.save(1, {"a": np.zeros(3)}, {})

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"step 2 could not be written \(No space left") as caught:
        folder.save(2, {"a": np.ones(3)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001.zip"]
    assert folder.latest()[0] == 1

    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        CheckpointFolder(tmp_path / "file" / "below").save(1, {}, {})


def test_a_killed_writer_leaves_whole_checkpoints(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from keras_cdiff.training.checkpoint import CheckpointFolder\n"
        "folder = CheckpointFolder(sys.argv[1])\n"
        "for step in range(1, 10**6):\n"
        "    folder.save(step, {'a': np.full(300_000, step)}, {})\n"
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    process = forked.Program([path, tmp_path / "run"], tmp_path / "output.txt")
    folder = CheckpointFolder(tmp_path / "run")
    while len(folder.steps()) < 3:
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.003)
    process.kill()
    process.wait()
    step, arrays, _ = folder.latest()
    assert step == folder.steps()[-1]
    assert (arrays["a"] == step).all()

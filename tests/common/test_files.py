"""Files are there whole or not at all."""

import json
import math
import threading

import pytest

from keras_cdiff.common.files import (
    FolderLock,
    append_record,
    strict_json,
    write_whole,
    write_whole_folder,
)

pytestmark = pytest.mark.backend_free


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(path, fail)
    assert not list(tmp_path.iterdir())
    write_whole(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole"
    with pytest.raises(RuntimeError):
        write_whole(path, fail)
    assert path.read_text() == "whole"


def test_json_without_nan_and_infinity():
    plain = strict_json({"a": [1.5, math.nan], "b": (math.inf, -math.inf), "c": {"d": "text"}})
    assert plain == {"a": [1.5, None], "b": ["inf", "-inf"], "c": {"d": "text"}}
    json.dumps(plain, allow_nan=False)


def test_records_are_appended_as_lines(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    for record in ({"step": 1}, {"step": 2, "loss": "inf"}):
        append_record(path, record)
    assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": "inf"}\n'
    with pytest.raises(ValueError, match="JSON"):
        append_record(path, {"loss": float("nan")})
    assert len(path.read_text().splitlines()) == 2


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def write(path):
        assert not path.exists()
        path.mkdir()
        (path / "file").write_text("whole")

    def fail(path):
        write(path)
        raise OSError("disk full")

    for path in (tmp_path / "new" / "folder", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        with pytest.raises(OSError, match="disk full"):
            write_whole_folder(path, fail)
        assert path.parent == tmp_path or not path.parent.exists()
        write_whole_folder(path, write)
        assert (path / "file").read_text() == "whole"
        assert not list(path.parent.glob("writing-*"))


def test_without_a_message_a_second_one_waits(tmp_path):
    entered = []

    def wait():
        with FolderLock(tmp_path, None):
            entered.append("second")

    with FolderLock(tmp_path, None):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        entered.append("first")
    waiting.join(600)
    assert entered == ["first", "second"]

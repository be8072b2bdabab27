"""Logs are cut back to a step, whatever the end of their last line."""

import json
import math

import numpy as np
import pytest

from keras_cdiff.training.workdir import cut_jsonl

pytestmark = pytest.mark.backend_free

# Lines that are no records.
DAMAGE = {
    "empty": b"",
    "zeros": b"\0\0",
    "no text": b"\xff",
    "deep": b"[" * 10**5,
    "no object": b"40",
    "no step": b'{"loss": 1}',
    "fraction": b'{"step": 1.5}',
    "truth": b'{"step": true}',
    "two in one": b'{"step": 20, "lo{"step": 30}',
    "other line end": b'{"step": 20\r"a": 1}',
}


def lines(steps):
    return [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


@pytest.mark.parametrize("step", [0, 9, 10, 25, 40, 10**9])
def test_records_up_to_the_step_stay_byte_for_byte(log, step):
    records = lines([10, 20, 30, 40])
    log.write_text("".join(records))
    cut_jsonl(log, step)
    assert log.read_text() == "".join(records[: step // 10])
    assert list(log.parent.iterdir()) == [log]


def test_a_log_cut_anywhere_keeps_its_whole_records(log):
    records = lines([10, 20, 30])
    content = "".join(records).encode()
    for length in range(len(content) + 1):
        log.write_bytes(content[:length])
        cut_jsonl(log, 30)
        ends = np.cumsum([len(record) for record in records])
        whole = sum(length >= end - 1 for end in ends)  # a record is whole without its line end too
        assert log.read_text() == "".join(records[:whole])


@pytest.mark.parametrize("tail", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_torn_last_line_goes_whatever_is_in_it(log, tail):
    records = "".join(lines([10, 20])).encode()
    log.write_bytes(records + tail)
    cut_jsonl(log, 100)
    assert log.read_bytes() == records


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("after", [0, 1])
def test_a_damaged_line_is_named_and_nothing_changes(log, damage, after):
    head, *tail = lines([10, 30])
    content = head.encode() + damage + b"\n" + "".join(tail[:after]).encode()
    log.write_bytes(content)
    with pytest.raises(ValueError, match=r"Line 2 of the log log\.jsonl is damaged") as raised:
        cut_jsonl(log, 5)
    assert str(raised.value).endswith(f"Received: path={str(log)!r}")
    assert log.read_bytes() == content
    assert list(log.parent.iterdir()) == [log]


def test_a_file_that_is_right_is_not_written_again(log):
    log.write_text("".join(lines([10, 20])))
    before = log.stat().st_ino
    cut_jsonl(log, 20)
    assert log.stat().st_ino == before


def test_a_missing_file_and_an_empty_one_stay_so(log):
    cut_jsonl(log, 3)
    assert not log.exists()
    log.write_text("")
    cut_jsonl(log, 3)
    assert log.read_text() == ""


@pytest.mark.parametrize("step", [-1, 2.0, True, None, math.nan])
def test_a_step_that_is_none_is_refused(log, step):
    with pytest.raises(ValueError, match=r"Received: step="):
        cut_jsonl(log, step)

"""Files are there whole or not at all."""

import json
import math

import pytest

from keras_cdiff.files import strict_json, write_whole

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

"""Files are there whole or not at all."""

import pytest

from keras_cdiff.files import write_whole

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

"""Checks of arguments."""

import numpy as np
import pytest

from keras_cdiff.common.checks import check_integer

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("bad", [0, 6, 2.0, "2", True, np.bool_(True), None])
def test_integers_must_be_whole_and_in_range(bad):
    with pytest.raises(ValueError, match=r"integer in \[1, 5\]: why\. Received: count="):
        check_integer("count", bad, 1, 5, "why")


def test_integers_become_those_of_python():
    assert type(check_integer("count", np.int32(5), 1, 5)) is int
    with pytest.raises(
        ValueError, match=r"`steps` must be an integer of at least 1\. Received: st"
    ):
        check_integer("steps", 0)

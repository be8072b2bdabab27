import numpy as np
import pytest

from keras_cdiff.common.arrays import evenly_spaced, fingerprint

pytestmark = pytest.mark.backend_free

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_fingerprint_tells_order_names_shapes_types_and_numbers_apart():
    others = [
        fingerprint("", VALUES.reshape(3, 2)),
        fingerprint("", VALUES[::-1]),
        fingerprint("", VALUES + np.float32(1e-6)),
        fingerprint("", VALUES.astype(np.int32)),
        fingerprint("", VALUES.astype(np.float64)),
        fingerprint("x", VALUES),
        fingerprint("", name=VALUES),
        fingerprint("", other=VALUES),
        fingerprint("", VALUES, VALUES),
        fingerprint("", VALUES.tobytes()),
        fingerprint("", "text"),
    ]
    assert len({fingerprint("", VALUES), *others}) == 1 + len(others)


def test_a_fingerprint_does_not_depend_on_memory_order_or_half_precision():
    expected = fingerprint("", VALUES)
    assert fingerprint("", np.asfortranarray(VALUES)) == expected
    assert fingerprint("", VALUES.astype(np.float16)) == expected
    assert fingerprint("", VALUES.astype(">f4")) == expected
    assert fingerprint("", b=VALUES, a="") == fingerprint("", a="", b=VALUES)


def test_places_are_even():
    np.testing.assert_array_equal(evenly_spaced(3, 9), [0, 4, 8])
    np.testing.assert_array_equal(evenly_spaced(4, 4), range(4))
    np.testing.assert_array_equal(evenly_spaced(8, 3), [0, 0, 0, 1, 1, 1, 2, 2])

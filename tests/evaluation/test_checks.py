import numpy as np
import pytest

from keras_cdiff.evaluation.checks import block_rows, check_features
from keras_cdiff.evaluation.frechet import frechet_distance, frechet_distance_infinity
from keras_cdiff.evaluation.inception_score import inception_score
from keras_cdiff.evaluation.kernel import kernel_distance, squared_mmd
from keras_cdiff.evaluation.precision_recall import precision_recall
from keras_cdiff.evaluation.statistics import FeatureStatistics

pytestmark = pytest.mark.backend_free

GOOD = np.random.default_rng(0).random((8, 3), dtype=np.float32)

TWO_SETS = {
    "frechet_distance": frechet_distance,
    "frechet_distance_infinity": frechet_distance_infinity,
    "kernel_distance": lambda real, generated: kernel_distance(real, generated, subset_size=4),
    "squared_mmd": squared_mmd,
    "precision_recall": precision_recall,
}
# A call with a bad set: a function of it, and what it calls its argument.
CALLS = {
    "statistics": (FeatureStatistics.of, "features"),
    "inception_score": (lambda bad: inception_score(bad, 2), "logits"),
}
for name, call in TWO_SETS.items():
    CALLS[f"{name}_real"] = (lambda bad, call=call: call(bad, GOOD)), "real"
    CALLS[f"{name}_generated"] = (lambda bad, call=call: call(GOOD, bad)), "generated"

BAD = {
    "integers": (GOOD.astype(np.int64), "floating-point"),
    "objects": (GOOD.astype(object), "floating-point"),
    "booleans": (GOOD > 0.5, "floating-point"),
    "ragged": ([[0.0, 1.0], [2.0]], "array"),
    "one_axis": (GOOD[0], "shape"),
    "three_axes": (GOOD[:, :, None], "shape"),
    "no_columns": (GOOD[:, :0], "shape"),
    "no_rows": (GOOD[:0], r"at least \d rows"),
    "one_row": (GOOD[:1], r"at least \d rows"),
    "nan": (np.where(np.arange(8)[:, None] == 5, np.nan, GOOD), r"finite in \w+\[5\]"),
    "infinity": (np.where(np.arange(8)[:, None] == 2, np.inf, GOOD), r"finite in \w+\[2\]"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", CALLS)
def test_every_metric_refuses_what_is_no_set_of_features(name, bad):
    call, argument = CALLS[name]
    value, message = BAD[bad]
    with pytest.raises(ValueError, match=message) as error:
        call(value)
    assert f"`{argument}`" in str(error.value)
    assert "Received: " in str(error.value)


@pytest.mark.parametrize("name", TWO_SETS)
def test_widths_must_be_equal(name):
    with pytest.raises(ValueError, match=r"same width.* Received: widths 3 and 2"):
        TWO_SETS[name](GOOD, GOOD[:, :2])


def test_a_row_that_is_not_finite_is_named_wherever_it_is():
    features = np.zeros((2 * block_rows(2**20) + 1, 2**20), np.float16)
    features[-1, -1] = np.inf
    with pytest.raises(ValueError, match=rf"features\[{len(features) - 1}\]"):
        check_features("features", features)


def test_memory_maps_stay_maps(tmp_path):
    np.save(tmp_path / "features.npy", GOOD)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert np.shares_memory(check_features("features", mapped), mapped)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_floating_point_dtypes_are_taken(dtype):
    assert check_features("features", GOOD.astype(dtype)).dtype == dtype

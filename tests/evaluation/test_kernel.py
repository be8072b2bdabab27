import numpy as np
import pytest

from keras_cdiff.evaluation.kernel import kernel_distance, squared_mmd

pytestmark = pytest.mark.backend_free

RNG = np.random.default_rng(0)


def brute_force(x, y):
    """The estimate from its definition, pair by pair in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def kernel(a, b):
        return (np.sum(a * b) / len(a) + 1) ** 3

    def within(z):
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_is_the_definition(dtype):
    x, y = RNG.random((15, 7)).astype(dtype), RNG.random((22, 7)).astype(dtype) + dtype(0.5)
    assert squared_mmd(x, y) == pytest.approx(brute_force(x, y), rel=1e-6)
    assert squared_mmd(y, x) == pytest.approx(squared_mmd(x, y), rel=1e-12)


@pytest.mark.parametrize("tool", ["clean_fid", "torch_fidelity"])
def test_matches_other_tools_on_their_subsets(golden, tool):
    data = golden("metrics")
    first, second = {"clean_fid": ("feats1", "feats2"), "torch_fidelity": ("ref", "gen")}[tool]
    name = tool.replace("_", "")
    values = [
        squared_mmd(data["in/ref"][i], data["in/gen"][j])
        for i, j in zip(
            data[f"in/kid_{name}_idx_{first}"], data[f"in/kid_{name}_idx_{second}"], strict=True
        )
    ]
    expected = np.atleast_1d(data[f"out/kid/{tool}"])
    assert np.mean(values) == pytest.approx(expected[0], rel=1e-6)
    if len(expected) == 2:
        assert np.std(values) == pytest.approx(expected[1], rel=1e-6)


def test_whole_sets(golden):
    data = golden("metrics")
    real, generated = data["in/ref"], data["in/gen"]
    value = squared_mmd(real, generated)
    assert value == pytest.approx(float(data["out/kid/clean_fid_full_set"]), rel=1e-6)
    exact = squared_mmd(real.astype(np.float64), generated.astype(np.float64))
    assert value == pytest.approx(exact, rel=1e-7)
    # A subset of all rows is the whole set.
    mean, deviation = kernel_distance(real, generated, num_subsets=3, subset_size=600)
    assert mean == pytest.approx(value, rel=1e-6)
    assert deviation < 1e-6 * value


def test_strips_do_not_matter(golden, monkeypatch):
    real, generated = (
        golden("metrics")[f"in/{name}"].astype(np.float64) for name in ("ref", "gen")
    )
    expected = squared_mmd(real, generated)
    monkeypatch.setattr("keras_cdiff.evaluation.kernel._STRIP_ROWS", 77)
    monkeypatch.setattr("keras_cdiff.evaluation.kernel.block_rows", lambda *_: 5)
    assert squared_mmd(real, generated) == pytest.approx(expected, rel=1e-9)


def test_subsets_are_unbiased():
    """The mean over subsets is near the value of the whole sets, which are of different sizes."""
    real, generated = RNG.normal(size=(300, 4)), RNG.normal(0.7, 1.0, (200, 4))
    mean, deviation = kernel_distance(real, generated, num_subsets=200, subset_size=50)
    assert abs(mean - squared_mmd(real, generated)) < 4 * deviation / np.sqrt(200)


def test_one_distribution_has_no_distance():
    values = [squared_mmd(*RNG.normal(size=(2, 30, 5))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
    assert min(values) < 0 < max(values)


def test_constant_features():
    ones = np.ones((5, 3))
    assert squared_mmd(ones, ones) == 0
    # k(x, x) = 8, k(y, y) = 1, k(x, y) = 1
    assert squared_mmd(ones, 0 * ones) == pytest.approx(8 + 1 - 2, rel=1e-12)


def test_input_is_not_changed_and_seed_decides(tmp_path):
    real, generated = RNG.random((2, 20, 3), dtype=np.float32)
    before = real.copy(), generated.copy()
    np.save(tmp_path / "real.npy", real)
    mapped = np.load(tmp_path / "real.npy", mmap_mode="r")
    first, again, other = (
        kernel_distance(features, generated, 4, 10, seed=seed)
        for features, seed in ((real, 0), (mapped, 0), (real, 1))
    )
    assert first == again != other
    np.testing.assert_array_equal(real, before[0])
    np.testing.assert_array_equal(generated, before[1])


@pytest.mark.parametrize(
    "bad",
    [
        {"subset_size": 7},
        {"subset_size": 1},
        {"num_subsets": 0},
        {"num_subsets": 2.5},
        {"seed": -1},
        {},
    ],
)
def test_bad_numbers_are_refused(bad):
    name = next(iter(bad), "subset_size")  # whose default is more than there are
    bad = {"subset_size": 4, **bad} if bad else {}
    with pytest.raises(ValueError, match=f"Received: {name}="):
        kernel_distance(RNG.random((9, 2)), RNG.random((6, 2)), **bad)

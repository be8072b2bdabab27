import json

import numpy as np
import pytest

from keras_cdiff.evaluation.statistics import FeatureStatistics

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def features():
    """Features far from 0, where sums of squares would lose their digits."""
    rng = np.random.default_rng(0)
    return (rng.gamma(2.0, size=(700, 12)) @ rng.random((12, 12)) + 1000).astype(np.float32)


def assert_moments(statistics, features):
    wide = features.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, wide.mean(axis=0), rtol=1e-13)
    expected = np.cov(wide, rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-9, atol=1e-10)
    assert statistics.count == len(features)


def test_moments_are_numpy_s(features):
    assert_moments(FeatureStatistics.of(features), features)


@pytest.mark.parametrize("sizes", [[700], [1] * 700, [1, 699], [256, 256, 188], [350, 350]])
def test_batch_size_does_not_matter(features, sizes):
    statistics = FeatureStatistics(12)
    for batch in np.split(features, np.cumsum(sizes)[:-1]):
        statistics.update(batch)
    assert_moments(statistics, features)


def test_blocks_of_rows_do_not_matter(features, monkeypatch):
    monkeypatch.setattr("keras_cdiff.evaluation.statistics.block_rows", lambda width: 23)
    assert_moments(FeatureStatistics.of(features), features)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_split_into_processes_and_their_order_do_not_matter(features, order):
    parts = np.split(features, [1, 50, 400])
    merged = FeatureStatistics(12)
    for i in order:
        assert merged.merge(FeatureStatistics(12).update(parts[i])) is merged
    assert_moments(merged, features)


def test_merging_nothing_changes_nothing(features):
    statistics = FeatureStatistics.of(features)
    before = statistics.covariance
    statistics.merge(FeatureStatistics(12))
    np.testing.assert_array_equal(statistics.covariance, before)


def test_merging_a_set_with_itself_counts_it_twice(features):
    statistics = FeatureStatistics.of(features)
    statistics.merge(statistics)
    assert_moments(statistics, np.concatenate([features, features]))


def test_covariance_is_symmetric_to_the_last_digit(features):
    statistics = FeatureStatistics.of(features[:300]).merge(FeatureStatistics.of(features[300:]))
    np.testing.assert_array_equal(statistics.covariance, statistics.covariance.T)


def test_constant_features_have_no_covariance():
    statistics = FeatureStatistics.of(np.full((10, 3), 0.1))
    np.testing.assert_allclose(statistics.covariance, 0, atol=1e-30)


def test_a_refused_batch_leaves_no_trace(features, monkeypatch):
    monkeypatch.setattr("keras_cdiff.evaluation.statistics.block_rows", lambda width: 10)
    statistics = FeatureStatistics.of(features)
    bad = features.copy()
    bad[-1, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        statistics.update(bad)
    assert_moments(statistics, features)


@pytest.mark.parametrize("row", [0, 350, 699])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite_is_named(features, row, value):
    """The sums show that there is one; it is looked for only then."""
    bad = features.copy()
    bad[row, 3] = value
    with pytest.raises(ValueError, match=rf"set\[{row}\]"):
        FeatureStatistics.of(bad, "set")


def test_features_that_overflow_when_squared_are_refused(features):
    assert FeatureStatistics.of(features * np.float32(1e35)).covariance.max() > 1e70
    statistics = FeatureStatistics.of(features)
    with pytest.raises(ValueError, match=r"squared in float64.* up to 1e\+200"):
        statistics.update(np.outer(np.array([1e200, -1e200]), np.ones(12)))
    assert_moments(statistics, features)


def test_a_copy_shares_nothing(features):
    statistics = FeatureStatistics.of(features[:300])
    statistics.description = {"a": {"b": 1}}
    copy = statistics.copy()
    copy.update(features[300:])
    copy.description["a"]["b"] = 2
    assert_moments(copy, features)
    assert_moments(statistics, features[:300])
    assert statistics.description == {"a": {"b": 1}}


def test_too_little_for_moments():
    statistics = FeatureStatistics(2)
    with pytest.raises(ValueError, match=r"no mean yet.*count=0"):
        _ = statistics.mean
    statistics.update(np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"at least two rows.*count=1"):
        _ = statistics.covariance


@pytest.mark.parametrize("width", [0, -1, 2.0, None])
def test_width_must_be_a_positive_integer(width):
    with pytest.raises(ValueError, match="width="):
        FeatureStatistics(width)


def test_widths_must_fit(features):
    with pytest.raises(ValueError, match="width 3"):
        FeatureStatistics(3).update(features)
    with pytest.raises(ValueError, match="width 3"):
        FeatureStatistics(3).merge(FeatureStatistics.of(features))


# Files


def test_file_keeps_everything(features, tmp_path):
    path = tmp_path / "folder" / "statistics.npz"
    FeatureStatistics.of(features[:300]).save(path, {"extractor": "inception", "resize": "clean"})
    loaded = FeatureStatistics.load(path)
    assert loaded.description == {"extractor": "inception", "resize": "clean"}
    assert_moments(loaded, features[:300])
    assert_moments(loaded.update(features[300:]), features)
    assert [file.name for file in path.parent.iterdir()] == ["statistics.npz"]
    loaded.save(path)
    assert FeatureStatistics.load(path).description == loaded.description


def test_file_is_what_other_tools_read(features, tmp_path):
    FeatureStatistics.of(features).save(tmp_path / "statistics.npz", {"a": 1})
    with np.load(tmp_path / "statistics.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["mu"], features.mean(axis=0, dtype=np.float64))
        assert file["sigma"].shape == (12, 12)
        assert file["num_images"] == 700
        assert json.loads(str(file["description"])) == {"a": 1}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_files_of_other_tools_are_read_but_not_added_to(features, tmp_path, dtype):
    mean, covariance = features.mean(axis=0), np.cov(features, rowvar=False)
    path = tmp_path / "reference.npz"
    # guided-diffusion's hold images and spatial features as well.
    np.savez(path, mu=mean.astype(dtype), sigma=covariance.astype(dtype), arr_0=np.zeros(3), mu_s=1)
    loaded = FeatureStatistics.load(path)
    assert loaded.count is None
    assert loaded.description == {}
    np.testing.assert_allclose(loaded.mean, mean.astype(dtype))
    np.testing.assert_allclose(loaded.covariance, covariance.astype(dtype))
    for add in (loaded.merge, FeatureStatistics(12).merge):
        with pytest.raises(ValueError, match="count=None"):
            add(loaded)
    with pytest.raises(ValueError, match="count=None"):
        loaded.update(features)
    loaded.save(tmp_path / "again.npz")
    assert FeatureStatistics.load(tmp_path / "again.npz").count is None


def eye(width, **changes):
    arrays = {"mu": np.zeros(width), "sigma": np.eye(width), "num_images": np.int64(9), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


SWAP = np.zeros((3, 3))
SWAP[0, 1] = 1
SKEW = np.eye(3) + 0.1 * SWAP


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        (eye(3, sigma=SKEW), "not symmetric"),
        (eye(3, sigma=np.eye(2)), r"sigma has the shape \(2, 2\)"),
        (eye(3, sigma=np.zeros(3)), r"sigma has the shape \(3,\)"),
        (eye(3, mu=np.zeros((3, 1))), r"mu has the shape \(3, 1\)"),
        (eye(3, mu=np.float64(0)), r"mu has the shape \(\)"),
        (eye(3, mu=np.array([0, np.nan, 0])), "mu is not finite"),
        (eye(3, sigma=np.full((3, 3), np.inf)), "sigma is not finite"),
        (eye(3, sigma=-np.eye(3)), "negative variances"),
        (eye(3, sigma=np.eye(3) + 2 * (SWAP + SWAP.T)), "not positive semidefinite"),
        (eye(3, sigma=np.diag([1.0, 1.0, -1e-4])), "not positive semidefinite"),
        (eye(3, sigma=np.eye(3, dtype=int)), "sigma has the dtype int64"),
        (eye(3, num_images=np.int64(1)), "num_images is 1"),
        (eye(3, sigma=None), "'sigma'"),
        (eye(3, description=np.array("{")), "JSON"),
        (eye(3, description=np.array("[1, 2]")), r"JSON object.* description=\[1, 2\]"),
        (eye(3, description=np.array("null")), "JSON object"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "'mu'"),
    ],
)
def test_foreign_files_are_refused(tmp_path, arrays, problem):
    np.savez(tmp_path / "statistics.npz", **arrays)
    with pytest.raises(ValueError, match=problem) as error:
        FeatureStatistics.load(tmp_path / "statistics.npz")
    assert "statistics.npz" in str(error.value)


@pytest.mark.parametrize("factor", [1.0, 0.0, 1e-200, 1e200])
def test_covariances_of_deficient_rank_are_read(tmp_path, factor):
    """Half of the eigenvalues are 0, and rounding in float32 makes some of them negative."""
    rows = np.random.default_rng(0).normal(size=(10, 20))
    sigma = np.cov(rows, rowvar=False).astype(np.float32).astype(np.float64)
    sigma *= factor
    if factor == 1:
        assert np.linalg.eigvalsh(sigma).min() < -1e-9
    np.savez(tmp_path / "statistics.npz", mu=rows.mean(axis=0), sigma=sigma)
    loaded = FeatureStatistics.load(tmp_path / "statistics.npz")
    np.testing.assert_array_equal(loaded.covariance, sigma)


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "pickle", "npy", "folder"])
def test_files_that_cannot_be_read_are_refused(features, tmp_path, kind):
    path = tmp_path / "statistics.npz"
    if kind == "truncated":
        FeatureStatistics.of(features).save(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "text":
        path.write_text("mu")
    elif kind == "pickle":
        np.savez(path, mu=np.zeros(3, object), sigma=np.eye(3))
    elif kind == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=r"whole \.npz with the arrays mu and sigma") as error:
        FeatureStatistics.load(path)
    assert "statistics.npz" in str(error.value)


def test_nothing_is_left_of_a_file_that_could_not_be_written(features, tmp_path):
    statistics = FeatureStatistics.of(features)
    with pytest.raises(ValueError, match=r"end in \.npz"):
        statistics.save(tmp_path / "statistics")
    for description in ({"a": np.zeros(2)}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="description="):
            statistics.save(tmp_path / "statistics.npz", description)
    with pytest.raises(ValueError, match="at least two rows"):
        FeatureStatistics(2).update(np.zeros((1, 2))).save(tmp_path / "statistics.npz")
    assert not list(tmp_path.iterdir())

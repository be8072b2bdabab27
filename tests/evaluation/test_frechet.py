import numpy as np
import pytest

from keras_cdiff.evaluation.frechet import (
    _sum_of_singular_values,
    frechet_distance,
    frechet_distance_infinity,
)
from keras_cdiff.evaluation.statistics import FeatureStatistics

pytestmark = pytest.mark.backend_free

RNG = np.random.default_rng(0)


def with_moments(mean, covariance, num_rows, seed=0):
    """Features (N, D) whose mean and covariance (divisor N - 1) are exactly the given ones."""
    noise = np.random.default_rng(seed).normal(size=(num_rows, len(mean)))
    noise -= noise.mean(axis=0)
    root = np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False)))
    return mean + noise @ root.T @ np.linalg.cholesky(covariance).T


def random_covariance(width, seed):
    factor = np.random.default_rng(seed).normal(size=(width, width))
    return factor @ factor.T / width + 0.1 * np.eye(width)


@pytest.mark.parametrize("tool", ["nuclear_norm_f64", "pytorch_fid", "edm", "clean_fid"])
@pytest.mark.parametrize("case", ["fid", "fid_self", "fid_rank_deficient"])
@pytest.mark.parametrize("kind", ["features", "statistics"])
def test_matches_other_tools(golden, case, tool, kind):
    data = golden("metrics")
    real, generated = {
        "fid": (data["in/ref"], data["in/gen"]),
        "fid_self": np.split(data["in/ref"], 2),
        "fid_rank_deficient": (data["in/small_ref"], data["in/small_gen"]),
    }[case]
    if kind == "statistics":
        real, generated = FeatureStatistics.of(real), FeatureStatistics.of(generated)
    # clean-fid takes the mean of float32 features in float32.
    tolerance = {"nuclear_norm_f64": 1e-12, "clean_fid": 1e-6}.get(tool, 3e-8)
    expected = float(data[f"out/{case}/{tool}"])
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=tolerance)


def test_two_gaussians_in_closed_form():
    mean_1, mean_2 = RNG.normal(size=(2, 6))
    first, second = random_covariance(6, 1), random_covariance(6, 2)
    # The eigenvalues of S_1 S_2, which is not symmetric, are real and positive all the same.
    overlap = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    expected = np.sum((mean_1 - mean_2) ** 2) + np.trace(first) + np.trace(second) - 2 * overlap
    distance = frechet_distance(
        with_moments(mean_1, first, 50, 1), with_moments(mean_2, second, 80, 2)
    )
    assert distance == pytest.approx(expected, rel=1e-11)


def test_commuting_covariances_compare_standard_deviations():
    real = with_moments(np.array([1.0, 2.0]), np.diag([4.0, 9.0]), 20)
    generated = with_moments(np.array([0.0, 4.0]), np.diag([1.0, 16.0]), 30)
    assert frechet_distance(real, generated) == pytest.approx(1 + 4 + 1 + 1, rel=1e-12)


def test_one_feature():
    real, generated = RNG.normal(2.0, 3.0, (40, 1)), RNG.normal(size=(25, 1))
    expected = (real.mean() - generated.mean()) ** 2
    expected += (real.std(ddof=1) - generated.std(ddof=1)) ** 2
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rows", [2, 7, 60])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_identical_sets_have_no_distance(rows, dtype):
    features = RNG.random((rows, 20)).astype(dtype)
    assert frechet_distance(features, features.copy()) == 0.0
    assert frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(features)) == 0.0
    # Neither the order of rows nor the form of the input makes one.
    assert 0 <= frechet_distance(features, features[::-1]) < 1e-12
    assert 0 <= frechet_distance(features, FeatureStatistics.of(features)) < 1e-12


def test_no_digits_are_lost_where_covariances_are_nearly_singular():
    """Standard deviations from 1 to 1e-7: roots of rounded eigenvalues would err by 1e-8 each."""
    deviations = np.logspace(0, -7, 100)
    directions = np.linalg.qr(RNG.normal(size=(100, 100)))[0]
    features = with_moments(np.zeros(100), np.eye(100), 150) * deviations @ directions
    assert frechet_distance(features, features[::-1]) < 1e-13
    expected = np.square(0.5 * deviations).sum()
    assert frechet_distance(features, 1.5 * features) == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def count_svd(monkeypatch):
    """Counts how often singular values are computed, which only the slower way needs."""
    calls = []
    svd = np.linalg.svd

    def count(*args, **kwargs):
        calls.append(args[0].shape)
        return svd(*args, **kwargs)

    monkeypatch.setattr(np.linalg, "svd", count)
    return calls


@pytest.mark.parametrize("decades", [1, 3, 5, 7])
def test_both_ways_give_the_closed_form(decades, count_svd, monkeypatch):
    """Covariances with common directions: the distance is that of standard deviations."""
    first = np.logspace(0, -decades / 2, 60)
    second = np.roll(first, 7)
    directions = np.linalg.qr(RNG.normal(size=(60, 60)))[0]
    real, generated = (
        FeatureStatistics.of(with_moments(np.zeros(60), np.eye(60), 90) * deviations @ directions)
        for deviations in (first, second)
    )
    expected = np.square(first - second).sum()
    fast = frechet_distance(real, generated)
    assert not count_svd
    monkeypatch.setattr("keras_cdiff.evaluation.frechet._TOLERANCE", 0)
    exact = frechet_distance(real, generated)
    assert count_svd == [(60, 60)]
    assert fast == pytest.approx(expected, rel=1e-10)
    assert exact == pytest.approx(expected, rel=1e-10)
    assert fast == pytest.approx(exact, rel=1e-11)


def test_singular_covariances_take_the_exact_way(golden, count_svd):
    data = golden("metrics")
    frechet_distance(data["in/ref"], data["in/gen"])
    assert not count_svd
    small = data["in/small_ref"], data["in/small_gen"]
    frechet_distance(*small)
    assert count_svd == [(40, 30)]
    # Their covariances' factors have no directions of rank 0 any more.
    frechet_distance(*map(FeatureStatistics.of, small))
    assert len(count_svd) == 1


@pytest.mark.parametrize("shape", [(30, 30), (20, 40), (40, 20), (1, 5), (0, 4)])
@pytest.mark.parametrize("decades", [2, 8, 12, 300])
def test_sum_of_singular_values_is_within_its_tolerance(shape, decades):
    least = min(shape)
    left, right = (np.linalg.qr(RNG.normal(size=(size, size)))[0][:, :least] for size in shape)
    values = np.logspace(0, -decades, least)
    matrix = left * values @ right.T
    for tolerance in (0, 1e-9, 1e-6):
        error = _sum_of_singular_values(matrix, tolerance) - values.sum()
        assert abs(error) <= tolerance + 1e-13


def test_duplicates_and_subspaces_of_deficient_rank():
    """Sets in two planes at right angles: no overlap, whatever the number of rows."""
    plane = RNG.normal(size=(30, 2))
    plane -= plane.mean(axis=0)
    real, generated = np.zeros((2, 90, 6))
    real[:, :2], generated[:, 2:4] = np.tile(plane, (3, 1)), np.tile(plane, (3, 1))
    expected = 2 * np.square(plane).sum() * 3 / 89
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(real[:5], generated[:5]) >= 0


def test_constant_features():
    constant = np.full((10, 4), 0.3)
    other = RNG.normal(size=(10, 4))
    expected = np.square(other.mean(axis=0) - 0.3).sum() + other.var(axis=0, ddof=1).sum()
    assert frechet_distance(constant, constant + 1.0) == pytest.approx(4.0)
    assert frechet_distance(constant, other) == pytest.approx(expected)
    statistics = FeatureStatistics.of(constant)
    assert frechet_distance(statistics, FeatureStatistics.of(other)) == pytest.approx(expected)


def test_symmetry_and_invariance(golden):
    real, generated = (
        golden("metrics")[f"in/{name}"].astype(np.float64) for name in ("ref", "gen")
    )
    distance = frechet_distance(real, generated)
    rotation = np.linalg.qr(RNG.normal(size=(48, 48)))[0]
    assert frechet_distance(generated, real) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(real @ rotation, generated @ rotation) == pytest.approx(distance)
    assert frechet_distance(3 * real + 7, 3 * generated + 7) == pytest.approx(9 * distance)


def test_batches_and_processes_do_not_matter(golden):
    real, generated = golden("metrics")["in/ref"], golden("metrics")["in/gen"]
    merged = FeatureStatistics(48)
    for part in np.split(generated, [7, 100, 350])[::-1]:
        merged.merge(FeatureStatistics.of(part))
    expected = frechet_distance(real, generated)
    assert frechet_distance(real, merged) == pytest.approx(expected, rel=1e-11)


def test_files_and_memory_maps(golden, tmp_path):
    real, generated = golden("metrics")["in/ref"], golden("metrics")["in/gen"]
    np.savez(tmp_path / "other_tool.npz", mu=real.mean(axis=0), sigma=np.cov(real, rowvar=False))
    np.save(tmp_path / "generated.npy", generated)
    mapped = np.load(tmp_path / "generated.npy", mmap_mode="r")
    distance = frechet_distance(FeatureStatistics.load(tmp_path / "other_tool.npz"), mapped)
    assert distance == pytest.approx(frechet_distance(real, generated), rel=1e-6)


def test_statistics_must_have_rows_and_the_same_width():
    with pytest.raises(ValueError, match="at least two rows"):
        frechet_distance(FeatureStatistics(2), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="widths 3 and 2"):
        frechet_distance(FeatureStatistics.of(np.eye(3)), np.zeros((3, 2)))


# Extrapolation


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_extrapolation_takes_the_bias_away(shift):
    """Real statistics are known exactly; 2,000 images at the true distance shift^2."""
    width = 40
    mean = np.zeros(width)
    mean[0] = shift
    real = FeatureStatistics.of(with_moments(np.zeros(width), np.eye(width), 100))
    generated = np.random.default_rng(3).normal(mean, size=(2000, width))
    value, error = frechet_distance_infinity(real, generated)
    assert frechet_distance(real, generated) - shift**2 > 0.2
    assert 0 < error < 0.02
    assert abs(value - shift**2) < 3 * error


def test_points_on_a_line_are_extrapolated_exactly(monkeypatch):
    monkeypatch.setattr(
        "keras_cdiff.evaluation.frechet._distance",
        lambda real, generated: 2.0 + 30.0 / len(generated.factor),
    )
    features = RNG.normal(size=(50, 60))
    value, error = frechet_distance_infinity(features, features, num_points=5)
    assert value == pytest.approx(2.0, abs=1e-12)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_standard_error_is_that_of_least_squares():
    features = RNG.normal(size=(2, 60, 3))
    value, error = frechet_distance_infinity(*features, num_points=6, min_samples=10, seed=4)
    rng = np.random.default_rng(4)
    sizes = np.linspace(10, 60, 6).astype(int)
    y = [frechet_distance(features[0], features[1][rng.permutation(60)[:size]]) for size in sizes]
    design = np.stack([np.ones(6), 1 / sizes], axis=1)
    (intercept, _), residual, *_ = np.linalg.lstsq(design, np.array(y))
    variance = residual[0] / 4 * np.linalg.inv(design.T @ design)[0, 0]
    assert value == pytest.approx(intercept, rel=1e-9)
    assert error == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_seed_decides_the_subsets():
    features = RNG.normal(size=(2, 30, 4))
    results = [frechet_distance_infinity(*features, 4, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize(
    "bad",
    [{"num_points": 2}, {"min_samples": 1}, {"min_samples": 8}, {"seed": -1}, {"seed": None}],
)
def test_extrapolation_refuses_bad_numbers(bad):
    features = RNG.normal(size=(8, 3))
    with pytest.raises(ValueError, match=f"Received: {next(iter(bad))}="):
        frechet_distance_infinity(features, features, **bad)


def test_extrapolation_needs_three_images():
    features = RNG.normal(size=(8, 3))
    with pytest.raises(ValueError, match=r"`generated` must have at least 3 rows"):
        frechet_distance_infinity(features, features[:2])
    value, error = frechet_distance_infinity(features, features[:3])
    assert np.isfinite([value, error]).all()


def test_extrapolation_needs_the_generated_features():
    features = RNG.normal(size=(8, 3))
    with pytest.raises(ValueError, match="Received: generated=FeatureStatistics"):
        frechet_distance_infinity(features, FeatureStatistics.of(features))

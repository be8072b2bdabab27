"""Relative entropies against closed forms and quadrature, and where they must be careful."""

import importlib
import tracemalloc

import numpy as np
import pytest
import scipy.special

from keras_cdiff import schedules, study

MODULE = importlib.import_module("keras_cdiff.study.relative_entropy")
TIMESTEPS = np.unique(np.geomspace(100, 999, 20).astype(int))


def gaussian_data(std, count=2000):
    """The middles of equally probable intervals: at much noise their mixture is as Gaussian."""
    data = scipy.special.ndtri((np.arange(count) + 0.5) / count)[:, None]
    return std / data.std() * data


def within(estimate, error, expected, sigmas=3.0):
    """All but at most one of twenty lie within three standard errors, and none beyond five."""
    distance = np.abs(estimate - expected) / (error + 1e-12 + 1e-6 * np.abs(expected))
    assert np.mean(distance > sigmas) <= 0.05, distance
    assert distance.max() < 5.0, distance
    assert np.all(error > 0.0)


@pytest.mark.one_backend
def test_timesteps_of_gaussian_data():
    schedule = schedules.LinearBeta()
    estimate, error = study.relative_entropy(
        gaussian_data(0.5), schedule, TIMESTEPS, num_draws=2000, seed=1
    )
    expected = study.gaussian_relative_entropy(0.25, schedule, TIMESTEPS)
    within(estimate, error, expected)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        (schedules.EDM(), np.geomspace(0.05, 50.0, 20)),
        (schedules.RectifiedFlow(), np.linspace(0.05, 0.95, 20)),
        (schedules.VP(), np.linspace(0.1, 0.95, 20)),
    ],
    ids=["edm", "flow", "vp"],
)
def test_rates_of_gaussian_data(schedule, levels):
    estimate, error = study.relative_entropy(
        gaussian_data(0.5), schedule, levels, num_draws=2000, seed=1
    )
    within(estimate, error, study.gaussian_relative_entropy(0.25, schedule, levels))


# Not -1 and 1: their variance is 1 already, and nothing of first order would change with t.
TWO_POINTS = np.array([[-0.5], [0.5]])


def log_density(x, alpha, sigma):
    """Of the two points under noise."""
    exponents = -0.5 * np.square((x[:, None] - alpha * TWO_POINTS[:, 0]) / sigma)
    return scipy.special.logsumexp(exponents, axis=1) - np.log(2.0 * np.sqrt(2.0 * np.pi) * sigma)


def test_timesteps_of_two_points_against_quadrature():
    schedule = schedules.LinearBeta()
    levels = np.unique(np.geomspace(1, 999, 25).astype(int))
    estimate, error = study.relative_entropy(TWO_POINTS, schedule, levels, num_draws=2000, seed=2)
    expected = []
    for level in levels:
        alphas, sigmas = schedule.alpha_sigma(np.array([level - 1, level]))
        (alpha, next_alpha), (sigma, next_sigma) = alphas, sigmas
        offsets = sigma * np.linspace(-12, 12, 40001)
        x = np.unique(np.concatenate([offsets - 0.5 * alpha, offsets + 0.5 * alpha]))
        before, after = log_density(x, alpha, sigma), log_density(x, next_alpha, next_sigma)
        expected.append(np.trapezoid(np.exp(before) * (before - after), x))
    within(estimate, error, np.array(expected))


def test_rates_of_two_points_against_quadrature():
    schedule, levels = schedules.EDM(), np.geomspace(0.05, 20.0, 20)
    estimate, error = study.relative_entropy(TWO_POINTS, schedule, levels, num_draws=2000, seed=2)
    expected = []
    for sigma in levels:
        offsets = sigma * np.linspace(-12, 12, 40001)
        x = np.unique(np.concatenate([offsets - 0.5, offsets + 0.5]))
        step = 1e-4  # of log SNR = -2 ln sigma
        slope = log_density(x, 1.0, sigma * np.exp(-step / 2))
        slope = (slope - log_density(x, 1.0, sigma * np.exp(step / 2))) / (2 * step)
        expected.append(0.5 * np.trapezoid(np.exp(log_density(x, 1.0, sigma)) * slope**2, x))
    within(estimate, error, np.array(expected))


def test_gaussian_data_of_variance_a_quarter_is_hardest_in_the_middle():
    """The caution: the relative entropy need not fall with noise."""
    schedule = schedules.LinearBeta()
    levels = np.arange(1, 1000)
    for variance, peak in ((0.25, 133), (1e-4, 1)):
        curve = study.gaussian_relative_entropy(variance, schedule, levels)
        assert levels[np.argmax(curve)] == peak
    flat = study.gaussian_relative_entropy(1.0, schedule, levels)
    np.testing.assert_allclose(flat, 0.0, atol=1e-15)


def test_blocks_and_memory_maps_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = np.tanh(rng.normal(size=(50, 4, 4, 3))).astype("float32")
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for schedule, levels in ((schedules.Cosine(100), [1, 50, 99]), (schedules.EDM(), [0.1, 5.0])):
        whole = study.relative_entropy(images, schedule, levels, num_draws=16)
        monkeypatch.setattr(MODULE, "_BLOCK", 7)
        parts = study.relative_entropy(mapped, schedule, levels, num_draws=16)
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-12)
        monkeypatch.undo()


def test_memory_does_not_grow_with_the_data(monkeypatch, tmp_path):
    monkeypatch.setattr(MODULE, "_BLOCK", 50)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(2000, 100)))
    peaks = []
    for count in (500, 2000):
        images = np.load(tmp_path / "images.npy", mmap_mode="r")[:count]
        tracemalloc.start()
        study.relative_entropy(images, schedules.EDM(), [0.1, 1.0], num_draws=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 2 * 8 * 2000  # the order of the images is drawn


@pytest.mark.one_backend
def test_copies_of_an_image_count_as_often():
    """Distances of zero are zero, also where noise is a thousandth of a grey level."""
    rng = np.random.default_rng(0)
    images = np.tanh(rng.normal(size=(5, 3072)))
    schedule, levels = schedules.EDM(), [1e-5, 1e-2, 1.0]
    once = study.relative_entropy(images, schedule, levels, num_draws=64, seed=3)
    many = study.relative_entropy(np.repeat(images, 40, axis=0), schedule, levels, 2000, seed=3)
    assert np.all(np.abs(once[0] - many[0]) < 4.0 * np.hypot(once[1], many[1]) + 1e-9)
    # Far from all others an image is a Gaussian of its own: d ln(sigma) / d log SNR = -1 / 2.
    np.testing.assert_allclose(many[0][0], 3072 / 4, rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "`images` must be a float array.*uint8"),
        ({"images": [[0.5]]}, "Received: images of list"),
        ({"images": np.array([[1.0], [np.nan]])}, r"must be finite.*images\[1\]"),
        ({"levels": [0, 5]}, r"timesteps in 1\.\.99, each.*Received: levels=\[0"),
        ({"levels": [1.5]}, "must be timesteps"),
        ({"schedule": schedules.EDM(), "levels": [0.0]}, "signal and noise"),
        ({"schedule": schedules.RectifiedFlow(), "levels": [1.0]}, "signal and noise"),
        ({"num_draws": 2}, "at least 8. Received: num_draws=2"),
        ({"seed": -1}, "at least 0. Received: seed=-1"),
    ],
)
def test_bad_arguments(changes, message):
    good = {"images": np.zeros((2, 3)), "schedule": schedules.LinearBeta(100), "levels": [5]}
    with pytest.raises(ValueError, match=message):
        study.relative_entropy(**{**good, **changes})


@pytest.mark.parametrize("schedule", [schedules.LinearBeta(10), schedules.Cosine(4)])
def test_levels_far_apart(schedule):
    """Marginals with next to nothing in common are as far apart on each backend."""
    greys = np.linspace(-1, 1, 21)[:, None] * np.ones((21, 3072))
    estimate, error = study.relative_entropy(greys, schedule, [1, 2, 3], num_draws=64)
    assert np.all(np.isfinite(estimate) & (estimate > 0.0) & np.isfinite(error))
    assert np.all(np.diff(estimate) < 0.0)


def test_copies_of_one_image_are_one_gaussian():
    """Where images are equally long their length is no control."""
    image = np.random.default_rng(0).normal(size=(1, 3072))
    schedule = schedules.LinearBeta()
    estimate, _ = study.relative_entropy(np.repeat(image, 7, axis=0), schedule, [1], num_draws=64)
    alpha, sigma = schedule.alpha_sigma(np.array([0, 1]))
    shift = 0.5 * (np.diff(alpha) / sigma[1]) ** 2 * np.sum(image**2)
    width = study.gaussian_relative_entropy(0.0, schedule, [1], 3072)
    np.testing.assert_allclose(estimate, width + shift, rtol=1e-9)


def test_value_per_dimension():
    images = np.random.default_rng(0).normal(size=(20, 4, 4, 3))
    arguments = (images, schedules.LinearBeta(), [100, 500])
    whole = study.relative_entropy(*arguments, num_draws=32)
    each = study.relative_entropy(*arguments, num_draws=32, per_dimension=True)
    np.testing.assert_allclose(48 * np.array(each), whole, rtol=1e-12)

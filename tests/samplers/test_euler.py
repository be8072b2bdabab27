import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import Euler, Heun
from keras_cdiff.schedules import EDM, VE, VP, Cosine, LinearBeta, RectifiedFlow

SCHEDULES = [LinearBeta(1000), Cosine(1000), EDM(), RectifiedFlow(), VP(), VE()]


def ratio(schedule, level):
    with np.errstate(divide="ignore"):
        alpha, sigma = schedule.alpha_sigma(level)
        return sigma / alpha


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [Euler, Heun])
def test_added_noise_raises_the_ratio(schedule, sampler):
    plain = sampler(10).table(schedule)
    churned = sampler(10, s_churn=2.0, s_min=0.1, s_max=20.0, s_noise=1.5).table(schedule)
    before, after = ratio(schedule, plain["level"]), ratio(schedule, churned["level"])
    within = (before >= 0.1) & (before <= 20.0)
    assert 0 < np.sum(within) < 10
    np.testing.assert_allclose(after[within], 1.2 * before[within], rtol=1e-6)
    np.testing.assert_array_equal(churned["level"][~within], plain["level"][~within])
    np.testing.assert_array_equal(churned["noise_weight"][~within], 0.0)
    np.testing.assert_array_equal(churned["kept_weight"][~within], 1.0)
    np.testing.assert_array_equal(churned["next_level"], plain["next_level"])
    # The signal has its new scale, and the two noises add up to the new sigma.
    alpha, sigma = schedule.alpha_sigma(plain["level"])
    new_alpha, new_sigma = schedule.alpha_sigma(churned["level"])
    np.testing.assert_allclose(churned["kept_weight"] * alpha, new_alpha, rtol=1e-9, atol=1e-12)
    together = np.hypot(churned["kept_weight"] * sigma, churned["noise_weight"] / 1.5)
    np.testing.assert_allclose(together, new_sigma, rtol=1e-9)


def test_the_raise_is_limited():
    many = Euler(4, s_churn=100.0).table(EDM())["level"]
    np.testing.assert_allclose(many, np.sqrt(2.0) * Euler(4).levels(EDM()), rtol=1e-12)


@pytest.mark.parametrize("schedule", [LinearBeta(1000), VP(), RectifiedFlow()])
def test_no_noise_beyond_the_top_of_the_schedule(schedule):
    table = Euler(6, s_churn=100.0).table(schedule)
    top = Euler(6).levels(schedule)[0]
    assert table["level"][0] == top
    assert table["noise_weight"][0] == 0.0
    assert np.all(table["level"] <= top)
    assert np.all(table["noise_weight"][1:] > 0.0)


def std_of_samples(data, sampler, schedule):
    """The standard deviation of Gaussian data's samples: each step is linear in image and noise."""
    table, denoise = sampler.table(schedule), data.denoiser(schedule)
    alpha, sigma = schedule.alpha_sigma(sampler.levels(schedule)[0])
    variance = (alpha * data.std) ** 2 + sigma**2
    for i in range(len(table["level"])):
        row = {name: column[i] for name, column in table.items()}
        last = i == len(table["level"]) - 1
        origin, by_image, by_noise = (
            sampler.step(denoise, x, 0.0, row, noise, last=last)[0]
            for x, noise in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
        )
        variance = (by_image - origin) ** 2 * variance + (by_noise - origin) ** 2
    return np.sqrt(variance)


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow(), VP(), LinearBeta(1000)])
@pytest.mark.parametrize(("sampler", "tolerance"), [(Euler, 0.05), (Heun, 0.004)])
def test_fresh_noise_keeps_the_distribution(gaussian_data, schedule, sampler, tolerance):
    coarse, fine = (
        std_of_samples(gaussian_data, sampler(n, s_churn=20.0, s_max=50.0), schedule)
        / gaussian_data.std
        - 1.0
        for n in (100, 200)
    )
    assert abs(fine) < tolerance
    assert abs(fine) < 0.7 * abs(coarse)
    # Noise of another strength does not.
    louder = sampler(200, s_churn=20.0, s_max=50.0, s_noise=1.1)
    assert std_of_samples(gaussian_data, louder, schedule) > (1.0 + fine + 0.01) * gaussian_data.std


@pytest.mark.parametrize("sampler", [Euler(5, "level"), Heun(5, coordinate="level")])
@pytest.mark.parametrize("schedule", [LinearBeta(100), Cosine(100)])
def test_timesteps_have_no_level_coordinate(sampler, schedule):
    def denoise(x, level):
        raise AssertionError("The network was called.")

    x = np.zeros((1, 2, 2, 1), "float32")
    with pytest.raises(ValueError, match=r'needs a continuous schedule.*use coordinate="sigma"'):
        next(sampler.trajectory(denoise, x, schedule))


def test_a_straight_path_is_followed_in_one_step():
    # All images are one image: the velocity eps - x_0 is constant along the path.
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 3), dtype="float32")

    def denoise(x, level):
        return {"clean": 0.25 + 0.0 * x, "variance": None}

    for sampler in (Euler(1, "level"), Euler(3, "level"), Heun(3, coordinate="level")):
        *_, (x, _) = sampler.trajectory(denoise, noise, RectifiedFlow())
        np.testing.assert_allclose(ops.convert_to_numpy(x), 0.25, atol=1e-6)


@pytest.mark.parametrize("coordinate", ["sigma", "level"])
@pytest.mark.parametrize("sampler", [Euler, Heun])
def test_clipping(sampler, coordinate):
    def denoise(x, level):
        return {"clean": 5.0 + 0.0 * x, "variance": None}

    sampler = sampler(3, coordinate=coordinate, clip=True)
    x = np.ones((1, 1, 1, 1), "float32")
    *_, (x, clean) = sampler.trajectory(denoise, x, RectifiedFlow())
    np.testing.assert_allclose(ops.convert_to_numpy(x), 1.0, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(clean), 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinate": "time"}, "`coordinate` must be one of"),
        ({"s_churn": -1.0}, "`s_churn` must be"),
        ({"s_churn": float("inf")}, "`s_churn` must be"),
        ({"s_churn": float("nan")}, "`s_churn` must be"),
        ({"s_min": -1.0}, "`s_min` and `s_max` must"),
        ({"s_min": 2.0, "s_max": 1.0}, "`s_min` and `s_max` must"),
        ({"s_max": float("nan")}, "`s_min` and `s_max` must"),
        ({"s_noise": 0.0}, "`s_noise` must be"),
        ({"s_noise": float("nan")}, "`s_noise` must be"),
    ],
)
@pytest.mark.parametrize("sampler", [Euler, Heun])
def test_bad_arguments(sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler(**arguments)

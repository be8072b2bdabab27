"""Schedules against their closed forms and the official tables."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.schedules import EDM, Cosine, LinearBeta

DISCRETE = [LinearBeta(1000), LinearBeta(100), Cosine(1000), Cosine(50), LinearBeta(4), Cosine(1)]


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (LinearBeta(1000), "linear_1000"),
        (LinearBeta(100), "linear_100"),
        (Cosine(1000), "cosine_1000"),
    ],
)
def test_tables_equal_the_official_ones(golden, schedule, name):
    tables = golden("ddpm_tables").folder(f"out/{name}")
    np.testing.assert_allclose(schedule.betas, tables["betas"], rtol=1e-12)
    np.testing.assert_allclose(schedule.alphas_cumprod, tables["alphas_cumprod"], rtol=1e-12)
    timesteps = np.arange(schedule.num_timesteps)
    alpha, sigma = schedule.alpha_sigma(timesteps)
    np.testing.assert_allclose(alpha, tables["sqrt_alphas_cumprod"], rtol=1e-12)
    np.testing.assert_allclose(sigma, tables["sqrt_one_minus_alphas_cumprod"], rtol=1e-11)


@pytest.mark.parametrize("schedule", [*DISCRETE, EDM()], ids=lambda s: type(s).__name__)
def test_noise_grows_with_the_level(schedule):
    low, high = schedule.bounds
    discrete = hasattr(schedule, "num_timesteps")
    levels = np.arange(low, high) if discrete else np.geomspace(low, high, 100)
    alpha, sigma = schedule.alpha_sigma(levels)
    assert np.all(np.diff(sigma / alpha) > 0)
    log_snr = ops.convert_to_numpy(schedule.log_snr(levels))
    np.testing.assert_allclose(log_snr, 2 * np.log(alpha / sigma), rtol=2e-6, atol=2e-6)
    if discrete:
        np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    "schedule", [LinearBeta(), Cosine(), EDM()], ids=lambda s: type(s).__name__
)
def test_tensors_equal_the_host_and_are_float32_under_every_policy(schedule):
    levels = np.array([0.002, 0.5, 80.0]) if isinstance(schedule, EDM) else np.array([0, 7, 999])
    alpha, sigma = schedule.alpha_sigma(levels)
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        for value, expected in ((schedule.alpha(levels), alpha), (schedule.sigma(levels), sigma)):
            assert keras.backend.standardize_dtype(value.dtype) == "float32"
            np.testing.assert_allclose(ops.convert_to_numpy(value), expected, rtol=1e-6)


def test_fractional_timesteps_lie_between_their_neighbours():
    schedule = LinearBeta(10)
    sigma = ops.convert_to_numpy(schedule.sigma(np.array([3.0, 3.25, 4.0])))
    np.testing.assert_allclose(sigma[1], 0.75 * sigma[0] + 0.25 * sigma[2], rtol=1e-6)
    np.testing.assert_allclose(sigma[1], schedule.alpha_sigma(3.25)[1], rtol=1e-6)


@pytest.mark.parametrize("schedule", [LinearBeta(30), Cosine(20), EDM(0.01, 50.0)])
def test_config_round_trip(schedule):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(copy) is type(schedule)
    assert copy.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: LinearBeta(0), "num_timesteps=0"),
        (lambda: Cosine(2.5), "num_timesteps=2.5"),
        (lambda: EDM(0.0, 80.0), "sigma_min=0.0"),
        (lambda: EDM(1.0, 0.5), "sigma_max=0.5"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make()

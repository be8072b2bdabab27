"""Parameterizations: the target is the output whose estimate is the true image."""

import numpy as np
import pytest
from keras import ops

from keras_cdiff.parameterizations import EDMPreconditioning, Epsilon, Sample, Velocity
from keras_cdiff.schedules import EDM, Cosine, LinearBeta

SCHEDULES = {
    "linear": (LinearBeta(1000), [0.0, 10.0, 500.0, 999.0]),
    "cosine": (Cosine(100), [0.0, 30.0, 60.0, 90.0]),
    "edm": (EDM(), [0.002, 0.1, 1.0, 80.0]),
}
PARAMETERIZATIONS = [Epsilon(), Sample(), Velocity(), EDMPreconditioning(0.5)]


def numpy(values):
    return [ops.convert_to_numpy(v).astype("float64") for v in values]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_target_gives_back_the_clean_image(parameterization, schedule):
    schedule, levels = SCHEDULES[schedule]
    image, noise = np.random.default_rng(0).normal(size=(2, len(levels)))
    alpha, sigma = schedule.alpha_sigma(np.array(levels))
    levels = ops.convert_to_tensor(levels, "float32")
    c_skip, c_out, _, _ = numpy(parameterization.coefficients(levels, schedule))
    a, b = numpy(parameterization.target_coefficients(levels, schedule))
    clean = c_skip * (alpha * image + sigma * noise) + c_out * (a * image + b * noise)
    # The estimate's terms cancel: the error is relative to the largest of them.
    scale = np.abs(c_skip * sigma * noise) + np.abs(c_out) + 1.0
    np.testing.assert_allclose(clean / scale, image / scale, atol=3e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "edm"])
def test_input_has_unit_variance_for_unit_data(schedule):
    schedule, levels = SCHEDULES[schedule]
    alpha, sigma = schedule.alpha_sigma(np.array(levels))
    for parameterization in (Epsilon(), EDMPreconditioning(1.0)):
        _, _, c_in, _ = numpy(parameterization.coefficients(np.float32(levels), schedule))
        np.testing.assert_allclose(c_in**2 * (alpha**2 + sigma**2), 1.0, rtol=1e-5)


def test_edm_coefficients_have_their_closed_form():
    sigma, data = np.array([0.002, 0.3, 80.0], "float32"), 0.5
    c_skip, c_out, c_in, c_noise = numpy(EDMPreconditioning(data).coefficients(sigma))
    sigma = sigma.astype("float64")
    np.testing.assert_allclose(c_skip, data**2 / (sigma**2 + data**2), rtol=1e-6)
    np.testing.assert_allclose(c_out, sigma * data / np.sqrt(sigma**2 + data**2), rtol=1e-6)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(sigma**2 + data**2), rtol=1e-6)
    np.testing.assert_allclose(c_noise, np.log(sigma) / 4, rtol=1e-6)


def test_edm_target_has_unit_variance():
    levels = np.geomspace(0.002, 80.0, 20).astype("float32")
    a, b = numpy(EDMPreconditioning(0.5).target_coefficients(levels, EDM()))
    np.testing.assert_allclose(a**2 * 0.5**2 + b**2, 1.0, rtol=1e-5)


def test_timesteps_are_told_as_they_are_and_sigma_by_its_logarithm():
    _, _, _, told = Epsilon().coefficients(np.float32([0, 999]), LinearBeta())
    np.testing.assert_array_equal(ops.convert_to_numpy(told), [0, 999])
    _, _, _, told = Epsilon().coefficients(np.float32([0.5]), EDM())
    np.testing.assert_allclose(ops.convert_to_numpy(told), np.log([0.5]) / 4, rtol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_sigma_data_is_named(sigma_data):
    with pytest.raises(ValueError, match="Received: sigma_data="):
        EDMPreconditioning(sigma_data)

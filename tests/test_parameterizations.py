"""Parameterizations: the target is the output whose estimate is the true image."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.parameterizations import (
    EDMPreconditioning,
    Epsilon,
    IDDPMPreconditioning,
    Sample,
    Velocity,
    VEPreconditioning,
    VPPreconditioning,
)
from keras_cdiff.schedules import EDM, VE, VP, Cosine, LinearBeta, RectifiedFlow

SCHEDULES = {
    "linear": (LinearBeta(1000), [0.0, 10.0, 500.0, 999.0]),
    "cosine": (Cosine(100), [0.0, 30.0, 60.0, 90.0]),
    "edm": (EDM(), [0.002, 0.1, 1.0, 80.0]),
    "vp": (VP(), [1e-5, 1e-2, 0.5, 1.0]),
    "ve": (VE(), [4e-4, 0.1, 10.0, 1e4]),
    "flow": (RectifiedFlow(), [1e-4, 0.1, 0.5, 0.99]),
}
PARAMETERIZATIONS = [
    Epsilon(),
    Sample(),
    Velocity(),
    EDMPreconditioning(0.5),
    VPPreconditioning(),
    VEPreconditioning(),
    IDDPMPreconditioning(),
]


def numpy(values):
    return [ops.convert_to_numpy(v).astype("float64") for v in values]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_target_gives_back_the_clean_image(parameterization, schedule):
    schedule, levels = SCHEDULES[schedule]
    levels = np.float32(levels)
    image, noise = np.random.default_rng(0).normal(size=(2, len(levels)))
    alpha, sigma = schedule.alpha_sigma(levels)
    c_skip, c_out, _, _ = numpy(parameterization.coefficients(levels, schedule))
    a, b = numpy(parameterization.target_coefficients(levels, schedule))
    clean = c_skip * (alpha * image + sigma * noise) + c_out * (a * image + b * noise)
    # The estimate's terms cancel: the error is relative to the largest of them.
    scale = np.abs(c_skip * sigma * noise) + np.abs(c_out) + 1.0
    np.testing.assert_allclose(clean / scale, image / scale, atol=3e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_input_has_unit_variance_for_unit_data(schedule):
    schedule, levels = SCHEDULES[schedule]
    alpha, sigma = schedule.alpha_sigma(np.array(levels))
    for parameterization in (EDMPreconditioning(1.0), VPPreconditioning(), IDDPMPreconditioning()):
        _, _, c_in, _ = numpy(parameterization.coefficients(np.float32(levels), schedule))
        np.testing.assert_allclose(c_in**2 * (alpha**2 + sigma**2), 1.0, rtol=1e-5)


def test_the_flow_is_defined_at_both_ends():
    for parameterization in (Velocity(), Sample()):
        levels = np.float32([0.0, 1.0])
        for values in (
            parameterization.coefficients(levels, RectifiedFlow()),
            parameterization.target_coefficients(levels, RectifiedFlow()),
        ):
            assert np.all(np.isfinite(numpy(values)))
    c_skip, c_out, c_in, c_noise = numpy(
        Velocity().coefficients(np.float32([0.25]), RectifiedFlow())
    )
    assert [*c_skip, *c_out, *c_in, *c_noise] == [1.0, -0.25, 1.0, 250.0]


PRECONDITIONINGS = {
    "EDMPrecond": EDMPreconditioning(),
    "VPPrecond": VPPreconditioning(),
    "VEPrecond": VEPreconditioning(),
    "iDDPMPrecond": IDDPMPreconditioning(),
}


@pytest.mark.parametrize(
    ("file", "wrapper"),
    [
        *[
            (f"edm_{name}", w)
            for name in ("ddpmpp_uncond", "ddpmpp_cond", "adm_cond")
            for w in ("EDMPrecond", "VPPrecond", "VEPrecond")
        ],
        ("edm_ncsnpp_cond", "EDMPrecond"),
        ("edm_ncsnpp_cond", "VEPrecond"),
        ("edm_adm_iddpm", "iDDPMPrecond"),
    ],
)
def test_preconditionings_equal_the_official_ones(golden, file, wrapper):
    data = golden(file)
    expected, given = data.folder(f"out/{wrapper}"), data.folder(f"in/{wrapper}")
    coefficients = numpy(PRECONDITIONINGS[wrapper].coefficients(given["sigma"]))
    for name, value in zip(("c_skip", "c_out", "c_in", "c_noise"), coefficients, strict=True):
        # The official VP time loses digits in ln(1 + sigma^2).
        loose = name == "c_noise" and wrapper == "VPPrecond"
        tolerance = {"rtol": 5e-4, "atol": 6e-4} if loose else {"rtol": 1e-6, "atol": 1e-6}
        np.testing.assert_allclose(value, expected[name], **tolerance)
    c_skip, c_out, _, _ = (c[:, None, None, None] for c in coefficients)
    denoised = c_skip * given["x"] + c_out * expected["F"][:, : given["x"].shape[1]]
    np.testing.assert_allclose(denoised, expected["D"], atol=1e-4 * np.abs(expected["D"]).max())


def test_vp_network_is_told_the_time_of_the_vp_schedule():
    times = np.float32([1e-5, 1e-3, 0.1, 0.5, 1.0])
    _, _, _, c_noise = numpy(VPPreconditioning(num_timesteps=1000).coefficients(times, VP()))
    np.testing.assert_allclose(c_noise, 999 * times, rtol=1e-5)


def test_iddpm_table_equals_the_official_one(golden):
    data = golden("edm_adm_iddpm").folder("out/iDDPMPrecond")
    sigmas = IDDPMPreconditioning().sigmas
    assert sigmas.shape == (1000,)
    assert np.all(np.diff(sigmas) < 0)
    assert sigmas[-1] > 0
    # The official recursion over 1 + u^2 runs in float32.
    np.testing.assert_allclose(1 + sigmas**2, 1 + data["u"][:-1].astype("float64") ** 2, rtol=2e-6)
    np.testing.assert_allclose(
        np.append(sigmas, 0.0)[data["round_index"]], data["round_sigma"], rtol=1e-4
    )
    np.testing.assert_allclose(sigmas[[-1, 0]], data["sigma_min_max"], rtol=1e-3)


def test_iddpm_is_told_the_nearest_entry_of_its_table():
    parameterization = IDDPMPreconditioning(num_timesteps=50)
    table = np.append(parameterization.sigmas, 0.0)
    between = np.random.default_rng(0).uniform(size=(5, 50)) * (table[:-1] - table[1:]) + table[1:]
    ratio = np.concatenate([table, between.ravel(), [1e9]]).astype("float32")
    _, _, _, c_noise = numpy(parameterization.coefficients(ratio))
    nearest = np.argmin(np.abs(ratio[:, None] - table.astype("float32")), axis=1)
    np.testing.assert_array_equal(c_noise, 49 - nearest)


def test_networks_that_also_learn_a_variance_put_out_twice_the_channels():
    multiples = [p.output_multiple for p in PARAMETERIZATIONS]
    assert multiples == [1, 1, 1, 1, 1, 1, 2]
    assert Epsilon(learned_variance=True).output_multiple == 2


@pytest.mark.parametrize(
    "parameterization",
    [
        Epsilon(learned_variance=True),
        Sample(),
        Velocity(),
        EDMPreconditioning(0.7),
        VPPreconditioning(10.0, 0.2, 500),
        VEPreconditioning(),
        IDDPMPreconditioning(0.002, 0.01, 40),
    ],
    ids=lambda p: type(p).__name__,
)
def test_config_round_trip(parameterization):
    config = keras.saving.serialize_keras_object(parameterization)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(parameterization)
    assert copy.get_config() == parameterization.get_config()


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


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: VPPreconditioning(beta_d=0.0), "beta_d=0.0"),
        (lambda: VPPreconditioning(num_timesteps=1), "num_timesteps=1"),
        (lambda: IDDPMPreconditioning(c_1=1.0), "c_1=1.0"),
        (lambda: IDDPMPreconditioning(c_2=-0.1), "c_2=-0.1"),
        (lambda: IDDPMPreconditioning(num_timesteps=10.0), "num_timesteps=10.0"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make()

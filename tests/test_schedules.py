"""Schedules against their closed forms and the official tables."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.schedules import EDM, VE, VP, Cosine, LinearBeta, RectifiedFlow

DISCRETE = [LinearBeta(1000), LinearBeta(100), Cosine(1000), Cosine(50), LinearBeta(4), Cosine(1)]
CONTINUOUS = [EDM(), VP(), VE(), RectifiedFlow()]


def name(schedule):
    return type(schedule).__name__


def levels_of(schedule, count=100):
    """Levels over the whole of the schedule; without the ends of RectifiedFlow, where SNR is 0 or
    infinite.
    """
    if schedule in DISCRETE:
        return np.arange(schedule.num_timesteps)
    low, high = np.clip(schedule.bounds, 1e-6, None)
    return np.geomspace(low, high, count) * (0.999 if isinstance(schedule, RectifiedFlow) else 1.0)


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


@pytest.mark.parametrize("schedule", [*DISCRETE, *CONTINUOUS], ids=name)
def test_noise_grows_with_the_level(schedule):
    levels = levels_of(schedule)
    alpha, sigma = schedule.alpha_sigma(levels)
    assert np.all(np.diff(sigma / alpha) > 0)
    log_snr = ops.convert_to_numpy(schedule.log_snr(levels))
    np.testing.assert_allclose(log_snr, 2 * np.log(alpha / sigma), rtol=2e-6, atol=2e-6)
    if schedule in DISCRETE or isinstance(schedule, VP):
        np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-12)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), *CONTINUOUS], ids=name)
def test_tensors_equal_the_host_and_are_float32_under_every_policy(schedule):
    levels = np.array([0, 7, 999]) if schedule.coordinate == "timestep" else levels_of(schedule, 3)
    levels = levels.astype("float32")
    alpha, sigma = schedule.alpha_sigma(levels)
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        for value, expected in (
            (schedule.alpha(levels), alpha),
            (schedule.sigma(levels), sigma),
            (schedule.input_scale(levels), None),
            (schedule.log_snr(levels), None),
        ):
            assert keras.backend.standardize_dtype(value.dtype) == "float32"
            if expected is not None:
                np.testing.assert_allclose(ops.convert_to_numpy(value), expected, rtol=2e-6)


@pytest.mark.parametrize("schedule", [*DISCRETE, *CONTINUOUS], ids=name)
def test_level_at_inverts_the_ratio_of_noise_to_signal(schedule):
    alpha, sigma = schedule.alpha_sigma(levels_of(schedule))
    ratio = np.concatenate(
        [sigma / alpha, np.sqrt(sigma[1:] * sigma[:-1] / alpha[1:] / alpha[:-1])]
    )
    levels = schedule.level_at(ratio)
    assert (levels.dtype, levels.shape) == (np.float64, ratio.shape)
    alpha, sigma = schedule.alpha_sigma(levels)
    np.testing.assert_allclose(sigma / alpha, ratio, rtol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (LinearBeta(30), (0.0, 29.0)),
        (Cosine(1), (0.0, 0.0)),
        (EDM(), (0.0, np.inf)),
        (VP(), (1e-5, 1.0)),
        (VE(), (0.0, np.inf)),
        (RectifiedFlow(), (0.0, 1.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_level_at_stays_on_the_schedule(schedule, ends):
    np.testing.assert_allclose(schedule.level_at(np.array([0.0, np.inf])), ends, rtol=1e-15)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=name)
def test_slopes_are_the_derivatives(schedule):
    levels = levels_of(schedule, 20)[1:-1]
    step = 1e-4 * levels
    after, before = schedule.alpha_sigma(levels + step), schedule.alpha_sigma(levels - step)
    for slope, high, low in zip(schedule.slopes(levels), after, before, strict=True):
        np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=1e-5, atol=1e-7)


def test_timesteps_have_no_slopes():
    with pytest.raises(ValueError, match=r"timesteps are integers.*Received: schedule=Cosine"):
        Cosine().slopes(np.array([3.0]))


def test_vp_equals_the_official_one(golden):
    data = golden("edm_ddpmpp_uncond").folder("out/VPPrecond")
    times = golden("edm_ddpmpp_uncond")["in/VPPrecond/t"]
    alpha, sigma = VP().alpha_sigma(times)
    np.testing.assert_allclose(sigma / alpha, data["sigma_of_t"], rtol=1e-6)
    np.testing.assert_allclose(VP().level_at(data["sigma_of_t"]), data["t_of_sigma"], rtol=1e-6)
    alpha, sigma = VP().alpha_sigma(np.array(VP().bounds))
    # The official lowest sigma is the root of a float32 difference near 1e-6.
    np.testing.assert_allclose(sigma[1] / alpha[1], data["sigma_min_max"][1], rtol=1e-6)
    np.testing.assert_allclose((sigma / alpha)[0] ** 2, data["sigma_min_max"][0] ** 2, atol=6e-8)


def test_little_noise_keeps_its_digits():
    times = np.array([1e-5, 1e-4, 1e-3])
    exponent = 19.9 * times**2 / 2 + 0.1 * times
    sigma = ops.convert_to_numpy(VP().sigma(times))
    # sigma^2 = 1 - exp(-B) = B - B^2 / 2 + ...
    np.testing.assert_allclose(sigma**2, exponent * (1 - exponent / 2), rtol=1e-6)
    log_snr = ops.convert_to_numpy(VP().log_snr(times))
    np.testing.assert_allclose(log_snr, -np.log(exponent) - exponent / 2, rtol=1e-6)


def test_the_flow_runs_straight_from_image_to_noise():
    flow, levels = RectifiedFlow(), np.float32([0.0, 0.25, 1.0])
    a, b = (ops.convert_to_numpy(v) for v in flow.velocity(levels))
    np.testing.assert_array_equal(a, flow.slopes(levels)[0])
    np.testing.assert_array_equal(b, flow.slopes(levels)[1])
    log_snr = ops.convert_to_numpy(flow.log_snr(levels))
    np.testing.assert_allclose(log_snr, [np.inf, 2 * np.log(3), -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(flow.network_level(levels)), 1000 * levels)
    np.testing.assert_array_equal(ops.convert_to_numpy(flow.input_scale(levels)), 1.0)


def test_what_networks_are_told():
    told = ops.convert_to_numpy(VP().network_level(np.float32([0.5, 1.0])))
    np.testing.assert_allclose(told, [499.5, 999.0])
    told = ops.convert_to_numpy(VE().network_level(np.float32([4.0, 16.0])))
    np.testing.assert_allclose(told, [0.0, np.log(2)], rtol=1e-6, atol=1e-7)


def test_fractional_timesteps_lie_between_their_neighbours():
    schedule = LinearBeta(10)
    sigma = ops.convert_to_numpy(schedule.sigma(np.array([3.0, 3.25, 4.0])))
    np.testing.assert_allclose(sigma[1], 0.75 * sigma[0] + 0.25 * sigma[2], rtol=1e-6)
    np.testing.assert_allclose(sigma[1], schedule.alpha_sigma(3.25)[1], rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        LinearBeta(30),
        Cosine(20),
        EDM(0.01, 50.0),
        VP(10.0, 0.2, 1e-4),
        VE(0.1, 9.0),
        RectifiedFlow(),
    ],
    ids=name,
)
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
        (lambda: VE(1.0, float("inf")), "sigma_max=inf"),
        (lambda: VP(beta_d=0.0), "beta_d=0.0"),
        (lambda: VP(beta_min=-0.1), "beta_min=-0.1"),
        (lambda: VP(epsilon_t=0.0), "epsilon_t=0.0"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make()

"""Accuracy against exact solutions, with steps in float64 NumPy, so that rounding is no floor."""

import numpy as np
import pytest

from keras_cdiff.samplers import DDIM, DPMSolver, Euler, Heun
from keras_cdiff.schedules import EDM, VE, VP, Cosine, DiscreteSchedule, LinearBeta, RectifiedFlow

pytestmark = pytest.mark.backend_free

CONTINUOUS = [EDM(0.2, 80.0), RectifiedFlow(), VP(), VE(0.2, 10.0)]
SCHEDULES = [*CONTINUOUS, LinearBeta(1000)]


def levels_of(schedule, num_steps):
    """The ends of `num_steps` steps down to a level at which the images are still spread out."""
    if isinstance(schedule, DiscreteSchedule):
        return np.linspace(999, 39, num_steps + 1)
    if isinstance(schedule, EDM):
        return Heun(num_steps + 1).levels(schedule)
    if isinstance(schedule, VE):
        return Heun(num_steps + 1, spacing="geometric").levels(schedule)
    return np.linspace(1.0, 0.2, num_steps + 1)


def error(integrate, data, schedule, num_steps, sampler, **arguments):
    levels = levels_of(schedule, num_steps)
    alpha, sigma = schedule.alpha_sigma(levels)
    x = np.array([-1.8, -1.1, -0.4, 0.3, 0.9, 1.5]) * np.hypot(sigma[0], 0.5 * alpha[0])
    sampler = sampler(spacing=levels, clip=False, **arguments)
    end = integrate(sampler, schedule, data.denoiser(schedule), x)[-2]
    return np.abs(end - data.flow(x, (alpha[0], sigma[0]), (alpha[-1], sigma[-1]))).max()


def order(*arguments, **keywords):
    """By how many powers of 2 the error falls when the steps double."""
    integrate, data, schedule, sampler = arguments
    coarse, fine = (error(integrate, data, schedule, n, sampler, **keywords) for n in (120, 240))
    assert fine < 0.02
    return np.log2(coarse / fine)


@pytest.fixture(params=["gaussian_data", "two_points"])
def data(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [Euler, DDIM])
def test_euler_is_of_first_order(integrate, data, schedule, sampler):
    assert order(integrate, data, schedule, sampler) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_is_of_second_order(integrate, data, schedule):
    assert order(integrate, data, schedule, Heun) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize(("sampler", "expected"), [(Euler, 1.0), (Heun, 2.0)])
def test_orders_in_the_level_coordinate(integrate, data, schedule, sampler, expected):
    observed = order(integrate, data, schedule, sampler, coordinate="level")
    assert observed == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dpm_solver_is_of_second_order(integrate, two_points, schedule):
    assert order(integrate, two_points, schedule, DPMSolver) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dpm_solver_on_gaussian_data(integrate, gaussian_data, schedule):
    # Some of its errors happen to cancel there: of second order at least, and far below Euler's.
    assert order(integrate, gaussian_data, schedule, DPMSolver) > 1.7
    euler = error(integrate, gaussian_data, schedule, 120, Euler)
    assert error(integrate, gaussian_data, schedule, 120, DPMSolver) < euler / 10.0


@pytest.mark.parametrize("schedule", [*SCHEDULES, Cosine(1000)])
def test_ddim_without_fresh_noise_is_euler(integrate, two_points, schedule):
    x = np.linspace(-2.0, 2.0, 8) * DDIM(9).initial_scale(schedule)
    coordinates = ["sigma", "level"] if isinstance(schedule, EDM | RectifiedFlow) else ["sigma"]
    denoise = two_points.denoiser(schedule)
    expected = integrate(DDIM(9, clip=False), schedule, denoise, x)
    for coordinate in coordinates:
        actual = integrate(Euler(9, coordinate), schedule, denoise, x)
        for ours, theirs in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(200, clip=False),
        Euler(200),
        Euler(200, "level"),
        Heun(40),
        Heun(40, coordinate="level"),
        DPMSolver(40),
    ],
)
@pytest.mark.parametrize(
    "schedule", [LinearBeta(1000), Cosine(1000), EDM(), RectifiedFlow(), VP(), VE()]
)
def test_any_sampler_on_any_schedule(integrate, gaussian_data, sampler, schedule):
    if getattr(sampler, "coordinate", None) == "level":
        if isinstance(schedule, DiscreteSchedule):
            with pytest.raises(ValueError, match="needs a continuous schedule"):
                sampler.table(schedule)
            return
        if isinstance(schedule, VE):  # whose own time would need far more steps
            arguments = {**sampler.get_config(), "num_steps": 800, "spacing": "geometric"}
            sampler = type(sampler)(**arguments)
    x = np.random.default_rng(0).standard_normal(100)
    levels = sampler.levels(schedule)
    start = [ends[0] for ends in schedule.alpha_sigma(levels)]
    x = x * np.hypot(start[1], gaussian_data.std * start[0]) + gaussian_data.mean * start[0]
    end = integrate(sampler, schedule, gaussian_data.denoiser(schedule), x)[-1]
    expected = gaussian_data.flow(x, start, (1.0, 0.0))
    np.testing.assert_allclose(end, expected, atol=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equal_network_calls(integrate, two_points, schedule):
    euler = error(integrate, two_points, schedule, 60, Euler)
    assert error(integrate, two_points, schedule, 30, Heun) < euler
    assert error(integrate, two_points, schedule, 60, DPMSolver) < euler

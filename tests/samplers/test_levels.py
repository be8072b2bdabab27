import numpy as np
import pytest

from keras_cdiff.samplers import DDIM, DDPM, Heun
from keras_cdiff.samplers.sampler import noise_levels, respaced_timesteps
from keras_cdiff.schedules import EDM, VE, VP, LinearBeta, RectifiedFlow

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("counts", [10, 50, 250, (10, 15, 20)])
def test_linspace_is_the_official_respacing(golden, counts):
    name = ",".join(map(str, np.atleast_1d(counts)))
    expected = golden("ddpm_tables")[f"out/respacing/{name}"]
    np.testing.assert_array_equal(respaced_timesteps(1000, counts), expected)


def test_linspace_takes_every_timestep(golden):
    expected = golden("ddpm_tables")["out/linear_1000/timestep_map"]
    np.testing.assert_array_equal(respaced_timesteps(1000, 1000), expected)


def test_leading_is_the_official_constant_stride(golden):
    expected = golden("ddpm_tables")["out/respacing/ddim25"]
    np.testing.assert_array_equal(respaced_timesteps(1000, 25, "leading"), expected)


@pytest.mark.parametrize("run", ["ddim_eta0", "ddpm_fixed_small"])
def test_leading_is_the_default_of_diffusers(golden, run):
    expected = golden("diffusers")[f"out/{run}/timesteps"]
    levels = noise_levels(LinearBeta(1000), 10, "leading")
    np.testing.assert_array_equal(levels, expected)


def test_trailing_starts_at_the_noisiest_timestep():
    assert respaced_timesteps(1000, 4, "trailing").tolist() == [249, 499, 749, 999]
    assert respaced_timesteps(1000, 3, "trailing").tolist() == [332, 666, 999]


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 49, 99, 100])
def test_timesteps_ascend_within_range(spacing, num_steps):
    timesteps = respaced_timesteps(100, num_steps, spacing)
    assert len(timesteps) == num_steps
    assert np.all(np.diff(timesteps) > 0)
    assert timesteps[0] >= 0
    assert timesteps[-1] <= 99


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_one_step_starts_from_pure_noise(spacing):
    assert respaced_timesteps(1000, 1, spacing).tolist() == [999]


@pytest.mark.parametrize("num_steps", [18, 256])
def test_continuous_levels_are_those_of_edm(golden, num_steps):
    expected = golden("edm_sampler")[f"out/t_steps_{num_steps}"]
    np.testing.assert_allclose(Heun(num_steps).levels(EDM()), expected, rtol=1e-12)


def test_one_continuous_step_starts_at_sigma_max():
    assert Heun(1).levels(EDM()).tolist() == [80.0]


def test_continuous_levels_without_noise_at_the_end_are_even():
    np.testing.assert_allclose(Heun(4).levels(RectifiedFlow()), [1.0, 0.75, 0.5, 0.25])


def test_levels_can_be_listed():
    assert DDIM(spacing=[90, 40, 3]).levels(LinearBeta(100)).tolist() == [90.0, 40.0, 3.0]
    assert Heun(spacing=(5.0, 0.1)).levels(EDM()).tolist() == [5.0, 0.1]
    assert DDIM(spacing=[90, 40, 3]).num_steps == 3


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        (LinearBeta(100), [3, 40]),
        (LinearBeta(100), [40, 40]),
        (LinearBeta(100), [100, 3]),
        (LinearBeta(100), [3, -1]),
        (LinearBeta(100), [3.5, 1]),
        (EDM(), [81.0, 1.0]),
        (EDM(), [1.0, 0.0]),
        (RectifiedFlow(), [1.0, 0.0]),
    ],
)
def test_listed_levels_must_fit_the_schedule(schedule, levels):
    with pytest.raises(ValueError, match="must be descending"):
        DDIM(spacing=levels).levels(schedule)


@pytest.mark.parametrize(
    ("num_steps", "spacing", "message"),
    [
        (101, "linspace", "at most"),
        (101, "leading", "at most"),
        ((10, 51), "linspace", "at most"),
        ((10, 10), "trailing", "Counts by section"),
    ],
)
def test_impossible_respacing(num_steps, spacing, message):
    with pytest.raises(ValueError, match=message):
        DDPM(num_steps, spacing=spacing).levels(LinearBeta(100))


def test_linear_levels():
    np.testing.assert_allclose(
        Heun(4, spacing="linear").levels(VP(epsilon_t=0.1)), [1.0, 0.7, 0.4, 0.1]
    )
    np.testing.assert_allclose(
        Heun(4, spacing="linear").levels(RectifiedFlow()), [1.0, 0.75, 0.5, 0.25]
    )


@pytest.mark.parametrize("schedule", [EDM(0.01, 10.0), VE(0.01, 10.0)])
def test_geometric_levels(schedule):
    _, sigma = schedule.alpha_sigma(Heun(4, spacing="geometric").levels(schedule))
    np.testing.assert_allclose(sigma, [10.0, 1.0, 0.1, 0.01])


@pytest.mark.parametrize("schedule", [VP(), VE()])
def test_rho_levels_are_of_the_ratio(schedule):
    levels = Heun(5, rho=3.0).levels(schedule)
    np.testing.assert_array_equal(levels[[0, -1]], schedule.bounds[::-1])
    alpha, sigma = schedule.alpha_sigma(levels)
    np.testing.assert_allclose(np.diff((sigma / alpha) ** (1.0 / 3.0), 2), 0.0, atol=1e-9)
    np.testing.assert_array_equal(levels, Heun(5, rho=3.0, spacing="rho").levels(schedule))


@pytest.mark.parametrize("spacing", ["geometric", "rho"])
def test_spacings_that_need_noise_at_the_end(spacing):
    with pytest.raises(ValueError, match="cannot span the levels of RectifiedFlow"):
        Heun(5, spacing=spacing).levels(RectifiedFlow())


@pytest.mark.parametrize("spacing", ["linear", "geometric", "rho"])
def test_timesteps_have_spacings_of_their_own(spacing):
    with pytest.raises(ValueError, match="`spacing` of timesteps must be"):
        Heun(5, spacing=spacing).levels(LinearBeta(100))


@pytest.mark.parametrize(("num_steps", "spacing"), [(10, "leading"), ((5, 5), "linspace")])
def test_continuous_schedules_have_no_timesteps(num_steps, spacing):
    with pytest.raises(ValueError, match="no discrete timesteps"):
        DDIM(num_steps, spacing=spacing).levels(EDM())

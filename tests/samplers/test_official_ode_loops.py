"""Complete runs of the official EDM samplers and of diffusers' solvers."""

import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import DPMSolver, Euler, Heun
from keras_cdiff.schedules import EDM, VE, VP, LinearBeta, Schedule


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("deterministic", Heun(6), EDM()),
        (
            "stochastic",
            Heun(6, s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003),
            EDM(),
        ),
        (
            "ablation_vp",
            Heun(6, spacing="linear", coordinate="level"),
            VP(beta_d=19.9, beta_min=0.1, epsilon_t=1e-3),
        ),
        ("ablation_ve", Euler(6, spacing="geometric", coordinate="level"), VE(0.02, 100.0)),
    ],
)
def test_replays_the_official_run(golden, name, sampler, schedule):
    file = golden("edm_sampler")
    run = file.folder(f"out/{name}")
    calls = iter(zip(run["net_x"], run["net_sigma"], run["net_D"], strict=True))

    def denoise(x, level):
        expected_x, expected_sigma, clean = next(calls)
        alpha, sigma = schedule.alpha_sigma(np.array(level))
        np.testing.assert_allclose(sigma / alpha, expected_sigma, rtol=1e-9)
        # The official network input is x / alpha. In the scale of this call, not of the whole run.
        np.testing.assert_allclose(
            ops.convert_to_numpy(x) / alpha,
            expected_x,
            rtol=0,
            atol=1e-5 * np.abs(expected_x).max(),
        )
        return {"clean": ops.convert_to_tensor(clean), "variance": None}

    noise = iter(file[f"in/{name}/noise"])
    x = sampler.initial_scale(schedule) * file[f"in/{name}/latents"]
    *_, (x, _) = sampler.trajectory(denoise, x, schedule, lambda: next(noise))
    assert next(calls, None) is None
    expected = run["sample"]
    np.testing.assert_allclose(
        ops.convert_to_numpy(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


class Ratios(Schedule):
    """Variance-preserving, with sigma / alpha itself as the level."""

    @property
    def bounds(self):
        return 0.0, 1000.0

    def alpha_sigma(self, level):
        return 1.0 / np.hypot(1.0, level), level / np.hypot(1.0, level)

    def level_at(self, ratio):
        return ratio

    def slopes(self, level):
        return -level / (1.0 + level**2) ** 1.5, 1.0 / (1.0 + level**2) ** 1.5

    def alpha(self, level):
        return self.alpha_sigma(level)[0]

    def sigma(self, level):
        return self.alpha_sigma(level)[1]


def check_against_diffusers(file, name, trajectory, scale=None):
    """Compares each step with the recorded states, those times `scale`."""
    expected = file[f"out/{name}/samples"][1:]
    if scale is not None:
        expected = np.concatenate([expected[1::2], expected[-1:]])  # two entries a step of Heun's
        expected = expected * scale[:, None, None, None, None]
    tolerance = 1e-4 * np.abs(expected).max()
    for (x, _), reference in zip(trajectory, expected, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(x), reference, rtol=0, atol=tolerance)


def epsilon_network(x, level):
    return (0.5 + 0.4 * level / 1000.0) * x + 0.05 * ops.sin(3.0 * x)


def test_heun_of_diffusers(golden, epsilon_denoiser):
    file = golden("diffusers")
    schedule, sampler = LinearBeta(1000), Heun(10)
    alpha, _ = schedule.alpha_sigma(sampler.levels(schedule))
    # Its states are x / alpha.
    x = alpha[0] * file["out/heun/samples"][0]
    trajectory = sampler.trajectory(epsilon_denoiser(schedule, epsilon_network), x, schedule)
    check_against_diffusers(file, "heun", trajectory, scale=np.append(alpha[1:], 1.0))


def test_dpm_solver_of_diffusers(golden, epsilon_denoiser):
    file = golden("diffusers")
    schedule = LinearBeta(1000)
    sampler = DPMSolver(spacing=file["out/dpmpp_2m/timesteps"])
    x = file["out/dpmpp_2m/samples"][0]
    trajectory = sampler.trajectory(epsilon_denoiser(schedule, epsilon_network), x, schedule)
    check_against_diffusers(file, "dpmpp_2m", trajectory)


def test_dpm_solver_on_karras_sigmas_of_diffusers(golden, epsilon_denoiser):
    file = golden("diffusers")
    schedule = Ratios()
    ratios = file["out/dpmpp_2m_karras/sigmas"][:-1].astype("float64")
    # Its network is told the nearest timesteps.
    timesteps = dict(zip(ratios, file["out/dpmpp_2m_karras/timesteps"], strict=True))

    def network(x, level):
        return epsilon_network(x, float(timesteps[level]))

    x = file["out/dpmpp_2m_karras/samples"][0]
    sampler = DPMSolver(spacing=ratios)
    trajectory = sampler.trajectory(epsilon_denoiser(schedule, network), x, schedule)
    check_against_diffusers(file, "dpmpp_2m_karras", trajectory)


def preconditioned(x, sigma, output):
    """EDM's estimate of the clean image, sigma_data = 0.5."""
    variance = sigma**2 + 0.25
    return 0.25 / variance * x + 0.5 * sigma / float(np.sqrt(variance)) * output


@pytest.mark.parametrize(
    ("name", "sampler"), [("edm_euler", Euler(10)), ("edm_dpmsolver", DPMSolver(10))]
)
def test_edm_solvers_of_diffusers(golden, name, sampler):
    file = golden("diffusers")

    def denoise(x, sigma):
        told, scaled = 0.25 * float(np.log(sigma)), x / float(np.sqrt(sigma**2 + 0.25))
        output = (0.3 + 0.05 * told) * scaled + 0.05 * ops.sin(3.0 * scaled)
        return {"clean": preconditioned(x, sigma, output), "variance": None}

    x = file[f"out/{name}/samples"][0]
    check_against_diffusers(file, name, sampler.trajectory(denoise, x, EDM()))


def test_stochastic_euler_of_diffusers(golden):
    file = golden("diffusers")
    sampler = Euler(10, s_churn=4.0, s_min=0.05, s_max=50.0, s_noise=1.003)
    # It asks the network before adding noise, so its outputs are fed back; and it draws only where
    # noise is added.
    outputs = iter(file["out/edm_euler_churn/model_output"])
    drawn = iter(file["in/edm_euler_churn/noise"])
    x = file["out/edm_euler_churn/samples"][0]
    noisy = sampler.table(EDM())["noise_weight"] > 0.0
    noise = iter([next(drawn) if needed else np.zeros_like(x) for needed in noisy])
    assert next(drawn, None) is None

    def denoise(x, sigma):
        return {
            "clean": preconditioned(x, sigma, ops.convert_to_tensor(next(outputs))),
            "variance": None,
        }

    trajectory = sampler.trajectory(denoise, x, EDM(), lambda: next(noise))
    check_against_diffusers(file, "edm_euler_churn", trajectory)

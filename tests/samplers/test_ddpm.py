import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import DDIM, DDPM
from keras_cdiff.schedules import EDM, VE, VP, Cosine, LinearBeta, RectifiedFlow


@pytest.mark.parametrize(
    ("name", "schedule", "num_steps", "tolerance"),
    [
        ("linear_1000", LinearBeta(1000), 1000, 1e-12),
        ("linear_1000_r10", LinearBeta(1000), 10, 1e-12),
        ("linear_100", LinearBeta(100), 100, 1e-12),
        # The first beta is 4e-5, and 1 - alpha^2 keeps 12 of its digits in either code.
        ("cosine_1000", Cosine(1000), 1000, 4e-12),
    ],
)
def test_table_is_the_official_posterior(golden, name, schedule, num_steps, tolerance):
    official = golden("ddpm_tables").folder(f"out/{name}")
    table = DDPM(num_steps).table(schedule)
    pairs = {
        "clean_weight": official["posterior_mean_coef1"],
        "x_weight": official["posterior_mean_coef2"],
        "log_small": official["posterior_log_variance_clipped"],
        "log_large": np.log(official["betas"]),
        "level": official["timestep_map"],
    }
    for column, expected in pairs.items():
        np.testing.assert_allclose(table[column][::-1], expected, rtol=tolerance, err_msg=column)


@pytest.mark.parametrize(
    ("run", "sampler"),
    [
        ("ddpm_fixed_small", DDPM(10, "small", spacing="leading", clip=False)),
        ("ddpm_fixed_large_clip", DDPM(10, "large", spacing="leading", clip=True)),
    ],
)
def test_trajectory_of_diffusers(golden, epsilon_denoiser, run, sampler):
    file = golden("diffusers")
    expected = file[f"out/{run}/samples"]
    # The official last step draws nothing; ours draws and multiplies by zero.
    noise = iter([*file[f"in/{run}/noise"], np.ones_like(expected[0])])
    schedule = LinearBeta(1000)

    def network(x, level):
        return (0.5 + 0.4 * level / 1000.0) * x + 0.05 * ops.sin(3.0 * x)

    steps = sampler.trajectory(
        epsilon_denoiser(schedule, network), expected[0], schedule, lambda: next(noise)
    )
    tolerance = 1e-5 * np.abs(expected).max()
    for (x, _), reference in zip(steps, expected[1:], strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(x), reference, rtol=0, atol=tolerance)


def exact_variance(data, sampler, schedule):
    """The learned-variance output under which each step is the true reverse of Gaussian data."""
    table = sampler.table(schedule)
    alpha, sigma = schedule.alpha_sigma(table["level"])
    left = (data.std * sigma) ** 2 / ((alpha * data.std) ** 2 + sigma**2)
    exact = np.log(
        np.exp(table["log_small"]) * (table["noise_weight"] > 0) + table["clean_weight"] ** 2 * left
    )
    fraction = (exact - table["log_small"]) / (table["log_large"] - table["log_small"])
    return dict(zip(table["level"], 2.0 * fraction - 1.0, strict=True))


@pytest.mark.parametrize(
    ("variance", "num_steps", "tolerance"),
    [("learned", 10, 0.02), ("small", 250, 0.05), ("large", 250, 0.05)],
)
@pytest.mark.parametrize("schedule", [LinearBeta(1000), Cosine(1000), EDM()])
def test_reproduces_gaussian_data(gaussian_data, schedule, variance, num_steps, tolerance):
    sampler = DDPM(num_steps, variance, clip=False)
    outputs = exact_variance(gaussian_data, sampler, schedule)
    exact = gaussian_data.denoiser(schedule)

    def denoise(x, level):
        return {**exact(x, level), "variance": outputs[level] * ops.ones_like(x)}

    generator = np.random.default_rng(0)

    def draw():
        return generator.standard_normal((16, 32, 32, 1), dtype="float32")

    x = sampler.initial_scale(schedule) * draw()
    *_, (x, _) = sampler.trajectory(denoise, x, schedule, draw)
    values = ops.convert_to_numpy(x)
    # 16,384 values: the mean's standard error is 0.003, the std's 0.002.
    assert abs(values.mean() - gaussian_data.mean) < 0.012
    assert abs(values.std() / gaussian_data.std - 1.0) < tolerance


@pytest.mark.parametrize(
    "schedule", [LinearBeta(1000), Cosine(1000), EDM(), RectifiedFlow(), VP(), VE()]
)
def test_small_variance_is_ddim_with_eta_one(gaussian_data, schedule):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 4, 4, 3), dtype="float32")
    noise = generator.standard_normal((8, *x.shape), dtype="float32")
    ends = []
    for sampler in (DDPM(8, "small"), DDIM(8, eta=1.0)):
        draws = iter(noise)
        start = sampler.initial_scale(schedule) * x
        denoise = gaussian_data.denoiser(schedule)
        ends.append(list(sampler.trajectory(denoise, start, schedule, lambda d=draws: next(d))))
    for (a, _), (b, _) in zip(*ends, strict=True):
        a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_learned_variance_by_default_if_there_is_one():
    sampler = DDPM(5)
    row = {k: float(v[0]) for k, v in sampler.table(LinearBeta(100)).items()}
    x = ops.zeros((1, 2, 2, 1))
    noise = ops.ones_like(x)

    def end(sampler, variance):
        estimate = {"clean": x, "variance": variance}
        return ops.convert_to_numpy(sampler.step(lambda *_: estimate, x, x, row, noise)[0])

    np.testing.assert_allclose(end(sampler, 1.0 + x), end(DDPM(5, "large"), None), rtol=1e-6)
    np.testing.assert_allclose(end(sampler, x - 1.0), end(DDPM(5, "small"), None), rtol=1e-6)
    np.testing.assert_allclose(end(sampler, None), end(DDPM(5, "small"), None), rtol=1e-6)


def test_learned_variance_of_a_model_without_one(gaussian_data):
    schedule = LinearBeta(100)
    x = np.zeros((1, 2, 2, 1), "float32")
    steps = DDPM(5, "learned").trajectory(
        gaussian_data.denoiser(schedule), x, schedule, lambda: np.zeros_like(x)
    )
    with pytest.raises(ValueError, match="predicts no variance"):
        next(steps)

import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import DDIM, DDPM, Heun
from keras_cdiff.schedules import EDM, Cosine, LinearBeta, RectifiedFlow


def error_before_last_step(sampler, schedule, data):
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 1), dtype="float32")
    alpha, sigma = schedule.alpha_sigma(sampler.levels(schedule))
    x = sampler.initial_scale(schedule) * x
    *_, (end, _), _ = sampler.trajectory(data.denoiser(schedule), x, schedule)
    expected = data.flow(x, (alpha[0], sigma[0]), (alpha[-1], sigma[-1]))
    return np.abs(ops.convert_to_numpy(end) - expected).max()


@pytest.mark.parametrize("schedule", [EDM(), LinearBeta(1000), Cosine(1000)])
def test_error_falls_with_the_square_of_the_steps(gaussian_data, schedule):
    coarse, medium, fine = (
        error_before_last_step(Heun(n), schedule, gaussian_data) for n in (16, 32, 64)
    )
    assert fine < 0.02
    assert 3.0 < coarse / medium < 6.0
    assert 3.0 < medium / fine < 6.0


@pytest.mark.parametrize("sampler", [Heun(64), DDIM(256, clip=False), DDPM(64, clip=False)])
def test_may_start_without_signal(gaussian_data, sampler):
    schedule = RectifiedFlow()
    denoise = gaussian_data.denoiser(schedule)
    noise = np.random.default_rng(0).standard_normal((8, 16, 16, 1), dtype="float32")
    steps = sampler.trajectory(denoise, noise, schedule, lambda: noise[::-1])
    *_, (end, _) = steps
    assert np.all(np.isfinite(ops.convert_to_numpy(end)))
    if not sampler.needs_noise:
        expected = gaussian_data.flow(noise, (0.0, 1.0), (1.0, 0.0))
        np.testing.assert_allclose(ops.convert_to_numpy(end), expected, atol=0.02)


def test_two_calls_a_step_but_one_at_the_last(gaussian_data):
    levels = []
    exact = gaussian_data.denoiser(EDM())

    def denoise(x, level):
        levels.append(level)
        return exact(x, level)

    sampler = Heun(3)
    list(sampler.trajectory(denoise, np.zeros((1, 2, 2, 1), "float32"), EDM()))
    first, second, third = sampler.levels(EDM())
    assert levels == [first, second, second, third, third]


def test_clipping_reaches_both_calls():
    def denoise(x, level):
        return {"clean": 5.0 + 0.0 * x, "variance": None}

    sampler = Heun(4, clip=True)
    *_, (x, _) = sampler.trajectory(denoise, np.zeros((1, 1, 1, 1), "float32"), EDM())
    np.testing.assert_allclose(ops.convert_to_numpy(x), 1.0, atol=1e-6)

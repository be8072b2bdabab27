import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import DDIM
from keras_cdiff.schedules import EDM, Cosine, LinearBeta


@pytest.mark.parametrize(
    ("run", "sampler"),
    [
        ("ddim_eta0", DDIM(10, spacing="leading", clip=False)),
        (
            "ddim_eta0.5_clip",
            DDIM(10, eta=0.5, spacing="leading", clip=True, noise_from_clipped=False),
        ),
    ],
)
def test_trajectory_of_diffusers(golden, epsilon_denoiser, run, sampler):
    file = golden("diffusers")
    expected = file[f"out/{run}/samples"]
    noise = iter(file.get(f"in/{run}/noise", ()))
    schedule = LinearBeta(1000)

    def network(x, level):
        return (0.5 + 0.4 * level / 1000.0) * x + 0.05 * ops.sin(3.0 * x)

    steps = sampler.trajectory(
        epsilon_denoiser(schedule, network), expected[0], schedule, lambda: next(noise)
    )
    tolerance = 1e-5 * np.abs(expected).max()
    for (x, _), reference in zip(steps, expected[1:], strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(x), reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("schedule", [LinearBeta(1000), Cosine(1000), EDM()])
def test_without_fresh_noise_is_euler_of_the_probability_flow(gaussian_data, schedule):
    sampler = DDIM(12, clip=False)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3), dtype="float32")
    x = sampler.initial_scale(schedule) * x
    steps = sampler.trajectory(gaussian_data.denoiser(schedule), x, schedule)

    alpha, sigma = schedule.alpha_sigma(sampler.levels(schedule))
    scaled = x.astype("float64") / alpha[0]
    noise = np.append(sigma / alpha, 0.0)
    for i, (ours, _) in enumerate(steps):
        a, b = gaussian_data.clean_weights(alpha[i], sigma[i])
        slope = (scaled - (a + b * alpha[i] * scaled)) / noise[i]
        scaled = scaled + (noise[i + 1] - noise[i]) * slope
        expected = scaled * np.append(alpha, 1.0)[i + 1]
        np.testing.assert_allclose(
            ops.convert_to_numpy(ours), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )


def test_noise_follows_the_clipped_image_unless_told_otherwise():
    schedule = EDM()
    x = np.full((1, 1, 1, 1), 10.0, "float32")

    def step(**arguments):
        sampler = DDIM(spacing=[2.0, 1.0], **arguments)

        def denoise(x, level):
            return {"clean": 4.0 + 0.0 * x, "variance": None}

        x1, clean = next(sampler.trajectory(denoise, ops.convert_to_tensor(x), schedule))
        return float(ops.squeeze(x1)), float(ops.squeeze(clean))

    # eps is (10 - 1) / 2 or (10 - 4) / 2, and x = clean + 1 eps.
    assert step(clip=True) == pytest.approx((5.5, 1.0))
    assert step(clip=True, noise_from_clipped=False) == pytest.approx((4.0, 1.0))
    assert step(clip=False) == pytest.approx((7.0, 4.0))

"""Complete sampling loops of the official DiT code."""

import numpy as np
import pytest
from keras import ops

from keras_cdiff.convert import dit_from_official
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.objectives import UniformTimesteps
from keras_cdiff.parameterizations import Epsilon
from keras_cdiff.samplers import DDIM, DDPM
from keras_cdiff.samplers.sample import Guidance, estimator
from keras_cdiff.schedules import LinearBeta


def check(sampler, denoise, run, schedule, num_samples, sample_tolerance, clean_tolerance):
    x, noise, samples, cleans = (
        np.moveaxis(run[name], -3, -1)[..., :num_samples, :, :, :]
        for name in ("x_T", "noise", "sample", "pred_xstart")
    )
    draws = iter(noise)
    steps = sampler.trajectory(denoise, x, schedule, lambda: next(draws))
    for (x, clean), expected_x, expected_clean in zip(steps, samples, cleans, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(clean), expected_clean, rtol=0, atol=clean_tolerance
        )
        np.testing.assert_allclose(
            ops.convert_to_numpy(x), expected_x, rtol=0, atol=sample_tolerance
        )


@pytest.fixture
def official_run(golden):
    """A function: the name of a run -> its inputs and outputs."""

    def load(name):
        file = golden("ddpm_loops")
        return {**file.folder(f"in/{name}"), **file.folder(f"out/{name}")}

    return load


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ddpm_analytic_noclip", DDPM(10, clip=False)),
        ("ddim_analytic_noclip", DDIM(10, eta=0.5, clip=False)),
    ],
)
def test_closed_form_model(official_run, epsilon_denoiser, name, sampler):
    schedule = LinearBeta(1000)

    def network(x, level):
        return float(schedule.alpha_sigma(np.array(level))[1]) * x

    denoise = epsilon_denoiser(schedule, network, lambda x, level: ops.tanh(x))
    check(sampler, denoise, official_run(name), schedule, 2, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("name", "sampler", "guidance"),
    [
        ("ddpm_clip", DDPM(10), Guidance(1.0)),
        ("ddim_eta0", DDIM(10), Guidance(1.0)),
        ("ddim_eta0.5", DDIM(10, eta=0.5), Guidance(1.0)),
        ("ddpm_cfg1.5", DDPM(10), Guidance.official_dit(1.5)),
    ],
)
def test_dit(golden, official_run, name, sampler, guidance):
    weights = golden("dit_base").folder("weights")
    constructor = golden("ddpm_loops").config["dit_constructor"]
    model = DiffusionModel(
        dit_from_official(weights, **constructor),
        LinearBeta(1000),
        Epsilon(learned_variance=True),
        UniformTimesteps(1000),
        ema=None,
    )
    network = estimator(model, use_ema=False, guidance=guidance)
    run = official_run(name)
    # The official guidance runs hold each image twice, with its label and with the null label.
    num_samples = len(run["y"]) // (2 if guidance.active else 1)
    condition = {"label": run["y"][:num_samples].astype("int32")}
    if guidance.active:
        condition["guidance"] = np.float32(guidance.scale)

    def denoise(x, level):
        levels = np.full(num_samples, level, "float32")
        estimate = network({"x": x, "level": levels, **condition})
        return {name: ops.convert_to_tensor(value) for name, value in estimate.items()}

    check(sampler, denoise, run, model.schedule, num_samples, 1e-3, 5e-3)

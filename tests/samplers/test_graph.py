"""The step must run in one graph too, on rows of tensors, as exported samplers do."""

import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import DDIM, DDPM, DPMSolver, Euler, Heun
from keras_cdiff.schedules import EDM, LinearBeta, RectifiedFlow

TIMESTEPS, SIGMAS, FLOW = LinearBeta(1000), EDM(), RectifiedFlow()


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (DDPM(5, "small"), TIMESTEPS),
        (DDPM(5, "small"), SIGMAS),
        (DDPM(5, "learned"), TIMESTEPS),
        (DDPM(5, "learned"), SIGMAS),
        (DDIM(5), TIMESTEPS),
        (DDIM(5), SIGMAS),
        (DDIM(5, eta=0.5), TIMESTEPS),
        (DDIM(5, eta=0.5), SIGMAS),
        (Heun(5), TIMESTEPS),
        (Heun(5, s_churn=2.0), SIGMAS),
        (Heun(5, coordinate="level"), FLOW),
        (Euler(5, s_churn=2.0), TIMESTEPS),
        (Euler(5, "level", s_churn=2.0), FLOW),
        (DPMSolver(5), TIMESTEPS),
        (DPMSolver(5), SIGMAS),
        (DPMSolver(5), FLOW),
    ],
)
def test_a_loop_over_table_rows_equals_the_trajectory(sampler, schedule):
    num_steps = 5
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((num_steps, 2, 4, 4, 3), dtype="float32")
    x = sampler.initial_scale(schedule) * generator.standard_normal((2, 4, 4, 3), dtype="float32")

    def denoise(x, level):
        clean = 0.5 * ops.tanh(x + 0.01 * ops.cast(level, "float32"))
        return {"clean": clean, "variance": ops.cos(x)}

    draws = iter(noise)
    *_, (expected, _) = sampler.trajectory(denoise, x, schedule, lambda: next(draws))

    table = {
        name: ops.convert_to_tensor(column, dtype="float32")
        for name, column in sampler.table(schedule).items()
    }
    noise = ops.convert_to_tensor(noise)

    def step(i, state, last=False):
        row = {name: ops.take(column, i) for name, column in table.items()}
        return sampler.step(denoise, *state, row, ops.take(noise, i, axis=0), last=last)

    start = ops.convert_to_tensor(x)
    state = ops.fori_loop(0, num_steps - 1, step, (start, ops.zeros_like(start)))
    actual, _ = step(num_steps - 1, state, last=True)
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual), ops.convert_to_numpy(expected), rtol=0, atol=1e-4
    )

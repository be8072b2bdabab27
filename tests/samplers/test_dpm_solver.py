import numpy as np
import pytest
from keras import ops

from keras_cdiff.samplers import DDIM, DPMSolver
from keras_cdiff.schedules import EDM, Cosine, LinearBeta, RectifiedFlow


@pytest.mark.parametrize("schedule", [LinearBeta(1000), Cosine(1000), EDM(), RectifiedFlow()])
@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_first_and_last_step_are_of_first_order(schedule, num_steps):
    table = DPMSolver(num_steps).table(schedule)
    assert table["extrapolation"][0] == 0.0
    assert table["extrapolation"][-1] == 0.0
    # Above it is second order, but for the step after one without signal, infinitely long in h.
    start = 2 if isinstance(schedule, RectifiedFlow) else 1
    assert np.all(table["extrapolation"][start:-1] > 0.0)


def test_equal_steps_of_log_snr_extrapolate_by_a_half():
    table = DPMSolver(6, spacing="geometric").table(EDM())
    np.testing.assert_allclose(table["extrapolation"][1:-1], 0.5)


def test_two_steps_are_ddim(gaussian_data):
    schedule = EDM()
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 1), dtype="float32")
    denoise = gaussian_data.denoiser(schedule)
    ends = [
        [ops.convert_to_numpy(x) for x, _ in sampler.trajectory(denoise, 80.0 * x, schedule)]
        for sampler in (DPMSolver(2), DDIM(2, clip=False))
    ]
    np.testing.assert_allclose(*ends, rtol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_returns_the_estimate_before_extrapolation(clip):
    estimates = iter([0.0, 3.0, 4.0])

    def denoise(x, level):
        return {"clean": next(estimates) + 0.0 * x, "variance": None}

    sampler = DPMSolver(spacing=[4.0, 2.0, 1.0], clip=clip)
    x = np.zeros((1, 1, 1, 1), "float32")
    steps = list(sampler.trajectory(denoise, x, EDM()))
    states, cleans = (
        [float(np.squeeze(ops.convert_to_numpy(v))) for v in values]
        for values in zip(*steps, strict=True)
    )
    first, second = (1.0, 1.0) if clip else (3.0, 4.0)
    assert cleans == pytest.approx([0.0, first, second])
    # Halving sigma takes the state half of the way to the estimate, extrapolated by a half.
    assert states == pytest.approx([0.0, 0.75 * first, second])


def test_levels():
    assert DPMSolver(4).levels(LinearBeta(1000)).tolist() == [999.0, 749.0, 499.0, 249.0]
    assert DPMSolver(3, "linspace").levels(LinearBeta(999)).tolist() == [998.0, 499.0, 0.0]
    assert DPMSolver(4).levels(RectifiedFlow()).tolist() == [1.0, 0.75, 0.5, 0.25]


def test_counts_by_section_need_their_spacing():
    assert len(DPMSolver((3, 2), "linspace").levels(LinearBeta(100))) == 5
    with pytest.raises(ValueError, match="Counts by section"):
        DPMSolver((3, 2)).levels(LinearBeta(100))

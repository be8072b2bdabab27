"""Checks of whether the parts of a model fit together."""

import types

import pytest

from keras_cdiff import objectives, parameterizations, schedules
from keras_cdiff.model.checks import check_parts

VELOCITY = parameterizations.Velocity()


def network(out_channels=3):
    return types.SimpleNamespace(channels=3, out_channels=out_channels)


@pytest.mark.parametrize(
    ("schedule", "objective"),
    [
        (schedules.LinearBeta(50), objectives.UniformTimesteps(50)),
        (schedules.EDM(), objectives.LogNormalSigma()),
        (schedules.EDM(), objectives.LogUniformSigma()),
        (schedules.VP(), objectives.UniformTime(low=1e-5)),
        (schedules.VP(), objectives.UniformTime(low=0.1, high=0.9)),
        (schedules.VE(), objectives.LogUniformVariance()),
        (schedules.RectifiedFlow(), objectives.UniformTime()),
        (schedules.RectifiedFlow(), objectives.LogitNormalTime()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_objectives_that_draw_the_schedules_levels(schedule, objective):
    check_parts(network(), schedule, VELOCITY, objective)


@pytest.mark.parametrize(
    ("schedule", "objective", "said"),
    [
        (schedules.LinearBeta(50), objectives.UniformTimesteps(100), "num_timesteps=100"),
        (schedules.LinearBeta(50), objectives.UniformTimesteps(20), "num_timesteps=20"),
        (schedules.LinearBeta(50), objectives.LogNormalSigma(), "objective=LogNormalSigma"),
        (schedules.EDM(), objectives.UniformTimesteps(100), "schedule=EDM"),
        (schedules.EDM(), objectives.LogitNormalTime(), "objective=LogitNormalTime"),
        (schedules.VP(), objectives.UniformTime(), "schedule=VP.*low=0.0"),
        (schedules.VP(), objectives.LogUniformSigma(), "objective=LogUniformSigma"),
        (schedules.VE(), objectives.LogUniformSigma(), "objective=LogUniformSigma"),
        (schedules.VE(), objectives.LogUniformVariance(0.01, 50.0), "sigma_min=0.01"),
        (schedules.VE(), objectives.LogUniformVariance(0.02, 150.0), "sigma_max=150.0"),
        (schedules.RectifiedFlow(), objectives.LogNormalSigma(), "schedule=RectifiedFlow"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_objectives_that_draw_other_levels_are_refused(schedule, objective, said):
    with pytest.raises(ValueError, match=f"must draw levels of the schedule.*Received: .*{said}"):
        check_parts(network(), schedule, VELOCITY, objective)


def test_refusal_says_what_the_schedule_has():
    with pytest.raises(ValueError, match=r"time within \[0, 1\], not sigma within \[0, inf\]"):
        check_parts(network(), schedules.RectifiedFlow(), VELOCITY, objectives.LogNormalSigma())


def test_networks_put_out_as_many_channels_as_the_parameterization_takes():
    edm, log_normal = schedules.EDM(), objectives.LogNormalSigma()
    iddpm = parameterizations.IDDPMPreconditioning()
    check_parts(network(6), edm, iddpm, log_normal)
    with pytest.raises(ValueError, match=r"out_channels=6. Received: out_channels=3"):
        check_parts(network(3), edm, iddpm, log_normal)
    with pytest.raises(ValueError, match=r"out_channels=3. Received: out_channels=6"):
        check_parts(network(6), edm, VELOCITY, log_normal)

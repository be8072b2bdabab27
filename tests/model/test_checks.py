"""Checks of whether the parts of a model fit together."""

import types

import keras
import pytest

from keras_cdiff import objectives, parameterizations, schedules
from keras_cdiff.backbones.backbone import check_backbone
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


class Own(keras.Model):
    image_size, channels, num_classes = 8, 0, 3

    def __init__(self, width):
        super().__init__()

    def call(self, x, label=None):
        return x

    def get_config(self):
        return {"name": self.name}


def test_all_that_a_network_lacks_is_named_at_once():
    with pytest.raises(ValueError, match="Backbone describes it") as refusal:
        check_backbone(Own(3), augmented=True)
    for lacking in (
        "its `channels` must be an integer of at least 1",
        "its `out_channels` must be an integer of at least 1",
        "its `call` must take context, training, augment",
        "its `call` must take x and level first",
        "its `get_config` must return the arguments that make it",
        "it must be built when it is made",
        "Received: backbone=<Own",
    ):
        assert lacking in str(refusal.value)
    assert "image_size" not in str(refusal.value)


def test_a_network_must_be_a_model():
    with pytest.raises(ValueError, match=r"must be a keras\.Model; .*must take label, context"):
        check_backbone(network())

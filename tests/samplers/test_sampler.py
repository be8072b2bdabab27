import keras
import numpy as np
import pytest

from keras_cdiff.samplers import DDIM, DDPM, DPMSolver, Euler, Guidance, Heun
from keras_cdiff.schedules import EDM, VE, VP, Cosine, LinearBeta, RectifiedFlow

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(20, variance="large", clip=False),
        DDPM((5, 6), spacing="linspace"),
        DDIM(20, eta=0.3, spacing="trailing", noise_from_clipped=False),
        DDIM(spacing=[900, 30, 2]),
        Heun(9, rho=5.0, clip=True),
        Heun(9, coordinate="level", s_churn=3.0, s_min=0.1, s_max=5.0, s_noise=1.1),
        Heun(9, s_churn=3.0),
        Euler(9, "level", "linear", 3.0, True, 3.0, 0.1, 5.0, 1.1),
        DPMSolver(9, rho=3.0, clip=True),
        DPMSolver(9, "linspace"),
        Guidance(3.0, channels=2),
        Guidance(3.0, interval=(0.5, float("inf"))),
    ],
)
def test_config_round_trip(sampler):
    config = keras.saving.serialize_keras_object(sampler)
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is type(sampler)
    assert restored.get_config() == sampler.get_config()


@pytest.mark.parametrize(
    "schedule", [LinearBeta(1000), Cosine(1000), EDM(), RectifiedFlow(), VP(), VE()]
)
@pytest.mark.parametrize(
    "sampler",
    [DDPM(7), DDIM(7), DDIM(7, eta=1.0), Heun(7), Heun(7, s_churn=4.0), Euler(7), DPMSolver(7)],
)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_tables_are_finite_and_end_at_the_clean_image(schedule, sampler, num_steps):
    sampler = type(sampler)(**{**sampler.get_config(), "num_steps": num_steps})
    table = sampler.table(schedule)
    for name, column in table.items():
        assert column.shape == (num_steps,), name
        assert column.dtype == "float64", name
        assert np.all(np.isfinite(column)), name
    assert table["x_weight"][-1] == 0.0
    assert table["clean_weight"][-1] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2.5}, "num_steps"),
        ({"num_steps": ()}, "num_steps"),
        ({"num_steps": (3, 0)}, "num_steps"),
        ({"spacing": "quadratic"}, "spacing"),
        ({"spacing": []}, "num_steps"),
        ({"rho": 0.0}, "rho"),
        ({"rho": float("nan")}, "rho"),
    ],
)
@pytest.mark.parametrize("sampler", [DDPM, DDIM, DPMSolver, Euler, Heun])
def test_bad_arguments(sampler, arguments, message):
    with pytest.raises(ValueError, match=f"`{message}` must be"):
        sampler(**arguments)


def test_bad_arguments_of_one_sampler():
    with pytest.raises(ValueError, match="`eta` must be"):
        DDIM(eta=1.5)
    with pytest.raises(ValueError, match="`variance` must be"):
        DDPM(variance="medium")


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_bad_guidance_scale(scale):
    with pytest.raises(ValueError, match="guidance scale must be a finite number"):
        Guidance(scale)


def test_bad_guided_channels():
    with pytest.raises(ValueError, match="`channels` must be an integer of at least 1"):
        Guidance(2.0, channels=0)


def test_official_dit_guidance():
    assert Guidance.official_dit(4.0).get_config() == {
        "scale": 4.0,
        "channels": 3,
        "interval": None,
    }
    assert Guidance.of(2.5).get_config() == {"scale": 2.5, "channels": None, "interval": None}

"""Weightings: their published forms, one meaning for all parameterizations; official levels."""

import types
from statistics import NormalDist

import numpy as np
import pytest
from keras import ops

from keras_cdiff.model.process import Process
from keras_cdiff.objectives import (
    P2,
    Constant,
    EDMWeight,
    LogNormalSigma,
    LogUniformSigma,
    LogUniformVariance,
    MinSNR,
    UniformTime,
)
from keras_cdiff.parameterizations import (
    EDMPreconditioning,
    Epsilon,
    Sample,
    Velocity,
    VEPreconditioning,
    VPPreconditioning,
)
from keras_cdiff.schedules import EDM, VE, VP, LinearBeta, RectifiedFlow

PARAMETERIZATIONS = [
    Epsilon(),
    Sample(),
    Velocity(),
    EDMPreconditioning(0.5),
    VPPreconditioning(),
    VEPreconditioning(),
]


@pytest.mark.parametrize(
    ("weighting", "in_image"),
    [
        (MinSNR(5.0), lambda snr: np.minimum(snr, 5.0)),
        (P2(1.0, 2.0), lambda snr: snr / (2.0 + snr)),
        (EDMWeight(0.5), lambda snr: snr + 4.0),
    ],
    ids=["min_snr", "p2", "edm"],
)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("schedule", "levels"),
    [(LinearBeta(), [100.0, 600.0]), (EDM(), [0.1, 3.0]), (RectifiedFlow(), [0.1, 0.8])],
    ids=["linear", "edm", "flow"],
)
def test_weights_mean_the_same_for_every_parameterization(
    weighting, in_image, parameterization, schedule, levels
):
    """The loss of an output is w(SNR) times the squared error of the clean image it stands for."""
    objective = types.SimpleNamespace(weighting=weighting)
    process = Process(schedule, parameterization, objective)
    rng = np.random.default_rng(0)
    arrays = np.float32(rng.normal(size=(3, 2, 4, 4, 3)))
    image, noise, output = map(ops.convert_to_tensor, arrays)
    level = ops.convert_to_tensor(levels, "float32")
    coefficients = process.coefficients(level)
    noisy = process.noisy(image, noise, level)
    clean = process.clean(noisy, output, coefficients)
    error = ops.convert_to_numpy(clean).astype("float64") - arrays[0]
    alpha, sigma = schedule.alpha_sigma(np.array(levels))
    expected = in_image((alpha / sigma) ** 2) * np.mean(error**2, axis=(1, 2, 3))
    losses = process.losses(image, level, noise, noisy, output, coefficients)
    np.testing.assert_allclose(ops.convert_to_numpy(losses), expected, rtol=1e-4)


def test_min_snr_has_its_published_forms():
    schedule, gamma = LinearBeta(), 5.0
    levels = ops.convert_to_tensor([10.0, 200.0, 400.0, 999.0], "float32")
    snr = np.exp(ops.convert_to_numpy(schedule.log_snr(levels)).astype("float64"))
    published = {
        Epsilon: np.minimum(snr, gamma) / snr,
        Sample: np.minimum(snr, gamma),
        Velocity: np.minimum(snr, gamma) / (snr + 1),
    }
    for kind, expected in published.items():
        _, c_out, _, _ = kind().coefficients(levels, schedule)
        weight = MinSNR(gamma).output_weight(schedule.log_snr(levels), c_out)
        np.testing.assert_allclose(ops.convert_to_numpy(weight), expected, rtol=1e-4)


def test_p2_and_edm_have_their_published_forms():
    sigma = np.array([0.01, 0.5, 10.0])
    _, c_out, _, _ = EDMPreconditioning(0.5).coefficients(np.float32(sigma))
    weight = EDMWeight(0.5).output_weight(EDM().log_snr(np.float32(sigma)), c_out)
    np.testing.assert_allclose(ops.convert_to_numpy(weight), 1.0, rtol=1e-5)
    expected = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    weight = EDMWeight(0.5).weight(EDM().log_snr(np.float32(sigma)))
    np.testing.assert_allclose(ops.convert_to_numpy(weight), expected, rtol=1e-5)
    schedule = LinearBeta()
    levels = ops.convert_to_tensor([100.0, 900.0], "float32")
    snr = np.exp(ops.convert_to_numpy(schedule.log_snr(levels)).astype("float64"))
    _, c_out, _, _ = Epsilon().coefficients(levels, schedule)
    weight = P2(1.0, 1.0).output_weight(schedule.log_snr(levels), c_out)
    np.testing.assert_allclose(ops.convert_to_numpy(weight), 1 / (1 + snr), rtol=1e-4)


def test_weights_of_the_flow_have_their_closed_forms_and_no_nan_at_the_ends():
    levels = np.array([0.0, 1e-7, 1e-3, 0.3, 0.9, 1.0], "float32")
    _, c_out, _, _ = Velocity().coefficients(levels, RectifiedFlow())
    log_snr = RectifiedFlow().log_snr(levels)
    time = levels[1:].astype("float64")
    snr = ((1 - time) / time) ** 2
    for weighting, expected in (
        (Constant(), np.ones(5)),
        (MinSNR(5.0), np.minimum(snr, 5.0) * time**2),
        (P2(1.0, 1.0), snr / (1 + snr) * time**2),
        (P2(0.5, 2.0), snr / (2 + snr) ** 0.5 * time**2),
        (P2(2.0, 1.0), snr / (1 + snr) ** 2 * time**2),
        (EDMWeight(0.5), (snr + 4) * time**2),
    ):
        weight = ops.convert_to_numpy(weighting.output_weight(log_snr, c_out))
        assert np.isfinite(weight[0])
        np.testing.assert_allclose(weight[1:], expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("loss", "objective", "schedule"),
    [
        ("EDMLoss", LogNormalSigma(), EDM()),
        ("VPLoss", UniformTime(low=1e-5), VP()),
        ("VELoss", LogUniformSigma(), EDM()),
        ("VELoss", LogUniformVariance(), VE()),
    ],
    ids=["edm", "vp", "ve", "ve_variance"],
)
def test_drawn_levels_equal_the_official_ones(golden, loss, objective, schedule):
    data = golden("edm_loss")
    uniform = data[f"in/{loss}/draw0"].ravel()
    if loss == "EDMLoss":
        uniform = [NormalDist().cdf(z) for z in uniform.tolist()]  # drawn as normal numbers
    elif loss == "VPLoss":
        uniform = 1.0 - uniform  # the official time falls from 1 as the number grows
    uniform = ops.convert_to_tensor(np.float32(uniform))
    level = objective.draw(uniform, ops.convert_to_tensor(objective.support, "float32"))
    alpha, sigma = schedule.alpha_sigma(ops.convert_to_numpy(level).astype("float64"))
    np.testing.assert_allclose(sigma / alpha, data[f"out/{loss}/sigma"], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: MinSNR(0.0), "gamma=0.0"),
        (lambda: P2(gamma=-1.0), "gamma=-1.0"),
        (lambda: P2(k=0.0), "k=0.0"),
        (lambda: EDMWeight(float("nan")), "sigma_data=nan"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make()

"""Weightings: their published forms, one meaning for all parameterizations, official losses."""

import numpy as np
import pytest
from keras import ops

from keras_cdiff.objectives import (
    P2,
    Constant,
    EDMWeight,
    LogNormalSigma,
    LogUniformSigma,
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
from keras_cdiff.schedules import EDM, VP, LinearBeta, RectifiedFlow

PARAMETERIZATIONS = [Epsilon(), Sample(), Velocity(), EDMPreconditioning(0.5)]


@pytest.mark.parametrize("weighting", [MinSNR(5.0), P2(), EDMWeight(0.5)])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("schedule", "level"), [(LinearBeta(), 400.0), (EDM(), 0.7), (RectifiedFlow(), 0.3)]
)
def test_weights_mean_the_same_for_every_parameterization(
    weighting, parameterization, schedule, level
):
    # w_output |output error|^2 must be w |clean error|^2: the clean error is c_out times larger.
    level = ops.convert_to_tensor([level], "float32")
    _, c_out, _, _ = parameterization.coefficients(level, schedule)
    log_snr = schedule.log_snr(level)
    output_error = 0.3
    in_output = weighting.output_weight(log_snr, c_out) * output_error**2
    in_image = weighting.weight(log_snr) * ops.square(c_out * output_error)
    np.testing.assert_allclose(
        ops.convert_to_numpy(in_output), ops.convert_to_numpy(in_image), rtol=1e-5
    )


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
    ("loss", "objective", "parameterization"),
    [
        ("EDMLoss", LogNormalSigma(), EDMPreconditioning()),
        ("VPLoss", UniformTime(low=1e-5), VPPreconditioning()),
        ("VELoss", LogUniformSigma(), VEPreconditioning()),
    ],
)
def test_loss_maps_equal_the_official_ones(golden, loss, objective, parameterization):
    data, given = golden("edm_loss").folder(f"out/{loss}"), golden("edm_loss").folder(f"in/{loss}")
    first = given["draw0"].ravel()
    if loss == "EDMLoss":
        sigma = np.exp(objective.p_mean + objective.p_std * first)
    else:
        # The official time of VP falls from 1 as the uniform number grows.
        uniform = 1.0 - first if loss == "VPLoss" else first
        interval = ops.convert_to_tensor(objective.support, "float32")
        sigma = ops.convert_to_numpy(objective.draw(ops.convert_to_tensor(uniform), interval))
    if loss == "VPLoss":
        alpha, noise = VP().alpha_sigma(sigma.astype("float64"))
        sigma = noise / alpha
    np.testing.assert_allclose(sigma, data["sigma"], rtol=1e-5)

    sigma = np.float32(sigma)
    _, c_out, _, _ = parameterization.coefficients(sigma)
    on_output = objective.weighting.output_weight(EDM().log_snr(sigma), c_out)
    weight = ops.convert_to_numpy(on_output / ops.square(c_out))
    np.testing.assert_allclose(weight, data["weight"], rtol=2e-5)
    sigma, weight = sigma[:, None, None, None], weight[:, None, None, None]
    noisy = given["images"] + sigma * given["draw1"]
    np.testing.assert_allclose(noisy, data["noisy"], rtol=1e-5, atol=1e-5)
    loss_map = weight * (data["D"] - given["images"]) ** 2
    np.testing.assert_allclose(loss_map, data["loss"], atol=1e-4 * data["loss"].max())


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

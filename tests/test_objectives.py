"""Objectives: densities restricted to an interval, and weightings in their common space."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.objectives import (
    P2,
    Constant,
    EDMWeight,
    LogNormalSigma,
    MinSNR,
    UniformTimesteps,
)
from keras_cdiff.parameterizations import EDMPreconditioning, Epsilon, Sample, Velocity
from keras_cdiff.schedules import EDM, LinearBeta


def draw(objective, interval, count=100_000):
    uniform = keras.random.uniform((count,), seed=7)
    return ops.convert_to_numpy(objective.draw(uniform, ops.convert_to_tensor(interval, "float32")))


@pytest.mark.parametrize("interval", [(0.0, 1000.0), (950.0, 1000.0), (3.0, 4.0), (0.0, 7.0)])
def test_timesteps_are_uniform_over_their_interval(interval):
    levels = draw(UniformTimesteps(1000), interval)
    low, high = map(int, interval)
    counts = np.bincount(levels.astype(int), minlength=high)
    assert counts[:low].sum() == 0
    assert len(counts) == high
    expected = len(levels) / (high - low)
    deviation = np.abs(counts[low:] - expected) / np.sqrt(expected)
    assert deviation.max() < 5.5


def test_the_last_timestep_is_never_overstepped():
    largest = np.nextafter(np.float32(1), np.float32(0))
    for high in (1000.0, 4096.0, 999.0):
        level = UniformTimesteps(5000).draw(
            ops.convert_to_tensor([largest, 0.0], "float32"), ops.convert_to_tensor([0.0, high])
        )
        np.testing.assert_array_equal(ops.convert_to_numpy(level), [high - 1, 0.0])


@pytest.mark.parametrize(
    "interval",
    [
        (0.0, np.inf),
        (0.8269, np.inf),
        (0.0, 0.1097),
        (0.2222, 0.4082),
        (20.0, 80.0),
        (60.0, np.inf),
    ],
)
def test_sigma_follows_the_truncated_log_normal(interval):
    from statistics import NormalDist

    levels = np.sort(draw(LogNormalSigma(), interval).astype("float64"))
    assert np.all((levels >= interval[0] * (1 - 1e-5)) & (levels <= interval[1] * (1 + 1e-5)))
    # Survival probabilities keep their digits in the upper tail, where the restricted ones lie.
    cdf = NormalDist().cdf
    tail = np.array([cdf(1.0 * (-1.2 - x) / 1.2) for x in np.log(levels)])
    top, bottom = (
        cdf((-1.2 - np.log(edge)) / 1.2) if 0 < edge < np.inf else float(edge == 0)
        for edge in interval
    )
    distribution = (top - tail) / (top - bottom)
    empirical = (np.arange(len(levels)) + 0.5) / len(levels)
    # Kolmogorov-Smirnov at a level of about 1e-6.
    assert np.abs(distribution - empirical).max() < 2.7 / np.sqrt(len(levels))


def test_quantiles_cut_the_density_into_equal_parts():
    edges = LogNormalSigma().host_quantile(np.arange(6) / 5)
    assert (edges[0], edges[-1]) == (0.0, np.inf)
    levels = draw(LogNormalSigma(), (0.0, np.inf))
    shares = np.histogram(levels, edges)[0] / len(levels)
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    np.testing.assert_array_equal(
        UniformTimesteps(1000).host_quantile(np.arange(5) / 4), [0, 250, 500, 750, 1000]
    )


PARAMETERIZATIONS = [Epsilon(), Sample(), Velocity(), EDMPreconditioning(0.5)]


@pytest.mark.parametrize("weighting", [MinSNR(5.0), P2(), EDMWeight(0.5)])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("schedule", "level"), [(LinearBeta(), 400.0), (EDM(), 0.7)])
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


def test_edm_loss_map_equals_the_official_one(golden):
    data = golden("edm_loss")
    images = data["in/EDMLoss/images"].astype("float64")
    normal = data["in/EDMLoss/draw0"].ravel()
    sigma = np.exp(1.2 * normal - 1.2)
    np.testing.assert_allclose(sigma, data["out/EDMLoss/sigma"], rtol=1e-5)
    weight = ops.convert_to_numpy(EDMWeight(0.5).weight(EDM().log_snr(np.float32(sigma))))
    np.testing.assert_allclose(weight, data["out/EDMLoss/weight"], rtol=1e-5)
    loss = weight[:, None, None, None] * (data["out/EDMLoss/D"] - images) ** 2
    expected = data["out/EDMLoss/loss"]
    np.testing.assert_allclose(loss, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: MinSNR(0.0), "gamma=0.0"),
        (lambda: P2(gamma=-1.0), "gamma=-1.0"),
        (lambda: P2(k=0.0), "k=0.0"),
        (lambda: EDMWeight(float("nan")), "sigma_data=nan"),
        (lambda: LogNormalSigma(p_std=0.0), "p_std=0.0"),
        (lambda: LogNormalSigma(p_mean=float("inf")), "p_mean=inf"),
        (lambda: UniformTimesteps(0), "num_timesteps=0"),
        (lambda: UniformTimesteps(10, weighting="min_snr"), "weighting='min_snr'"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make()


def test_config_round_trip():
    for objective in (
        UniformTimesteps(50, weighting=MinSNR(3.0)),
        UniformTimesteps(50, weighting=Constant()),
        LogNormalSigma(-0.5, 1.0, weighting=P2(0.5, 2.0)),
    ):
        config = keras.saving.serialize_keras_object(objective)
        copy = keras.saving.deserialize_keras_object(config)
        assert keras.saving.serialize_keras_object(copy) == config

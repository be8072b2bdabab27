"""Densities over noise levels: their draws follow the density restricted to the interval."""

import math
from statistics import NormalDist

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.objectives import (
    P2,
    Constant,
    LogitNormalTime,
    LogNormalSigma,
    LogUniformSigma,
    LogUniformVariance,
    MinSNR,
    UniformTime,
    UniformTimesteps,
)
from keras_cdiff.objectives.normal import host_quantile, truncated_normal
from keras_cdiff.parameterizations import Velocity
from keras_cdiff.schedules import RectifiedFlow

INFINITE = float("inf")
LARGEST = np.nextafter(np.float32(1), np.float32(0))  # of the uniform numbers


def draw(objective, interval, uniform=None, count=100_000):
    uniform = keras.random.uniform((count,), seed=7) if uniform is None else uniform
    uniform = ops.convert_to_tensor(uniform)
    return ops.convert_to_numpy(objective.draw(uniform, ops.convert_to_tensor(interval, "float32")))


def kolmogorov_smirnov(values, cumulative, low, high):
    """The largest gap between the shares of `values` and `cumulative` restricted to [low, high],
    in standard units: 2.7 has a probability of about 1e-6.
    """
    first, last = cumulative(np.array([low, high], dtype="float64"))
    shares = (np.arange(len(values)) + 0.5) / len(values)
    # Every tenth value tells enough.
    restricted = (cumulative(np.sort(values)[::10]) - first) / (last - first)
    return np.abs(restricted - shares[::10]).max() * np.sqrt(len(values))


def normal_cumulative(coordinate):
    """The distribution function of a normal `coordinate` of the level, or, where that lies in the
    upper tail, minus the survival function, which keeps its digits there.
    """

    def cumulative(levels):
        with np.errstate(divide="ignore"):
            z = coordinate(levels)
        side = 1.0 if z.min() > 0.0 else -1.0
        tail = [0.5 * math.erfc(side * value / math.sqrt(2)) for value in z.tolist()]
        return -side * np.array(tail)

    return cumulative


def logit(levels):
    return np.log(levels) - np.log1p(-levels)


DENSITIES = {
    "log_normal": (
        LogNormalSigma(),
        normal_cumulative(lambda sigma: (np.log(sigma) + 1.2) / 1.2),
        [
            (0.0, INFINITE),
            (0.8269, INFINITE),
            (0.0, 0.1097),
            (0.2222, 0.4082),
            (20.0, 80.0),
            (60.0, INFINITE),
            (0.0, 1e-4),
        ],
    ),
    "logit_normal": (
        LogitNormalTime(),
        normal_cumulative(logit),
        [(0.0, 1.0), (0.6, 1.0), (0.0, 0.2), (0.45, 0.5), (0.97, 0.99), (0.995, 1.0)],
    ),
    "logit_normal_shifted": (
        LogitNormalTime(-0.5, 1.6),
        normal_cumulative(lambda time: (logit(time) + 0.5) / 1.6),
        [(0.0, 1.0), (0.9, 1.0), (0.0, 1e-3)],
    ),
    "uniform_time": (
        UniformTime(),
        lambda time: time,
        [(0.0, 1.0), (0.95, 1.0), (0.0, 0.05), (0.3, 0.35)],
    ),
    "uniform_vp_time": (UniformTime(low=1e-5), lambda time: time, [(1e-5, 1.0), (1e-5, 1e-3)]),
    "log_uniform_sigma": (
        LogUniformSigma(),
        np.log,
        [(0.02, 100.0), (42.0, 100.0), (0.02, 0.03), (1.0, 1.5)],
    ),
    "log_uniform_variance": (
        LogUniformVariance(),
        np.log,
        [(0.02**2, 100.0**2), (42.0**2, 100.0**2), (0.02**2, 0.001)],
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_draws_follow_the_restricted_density(name):
    objective, cumulative, intervals = DENSITIES[name]
    assert intervals[0] == objective.support
    for low, high in intervals:
        levels = draw(objective, (low, high))
        assert levels.dtype == np.float32
        assert np.all((levels >= np.float32(low)) & (levels < np.float32(high)))
        assert kolmogorov_smirnov(levels.astype("float64"), cumulative, low, high) < 2.7


class Draws(keras.Model):
    """Draws from all densities in one graph, each restricted to its row of `intervals`."""

    def call(self, inputs):
        return [
            objective.draw(inputs["uniform"], inputs["intervals"][row])
            for row, (objective, _, _) in enumerate(DENSITIES.values())
        ]


def test_compiled_draws_follow_the_restricted_density():
    intervals = [intervals[1] for _, _, intervals in DENSITIES.values()]
    model = Draws()
    model.compile(jit_compile=keras.backend.backend() != "torch")
    uniform = ops.convert_to_numpy(keras.random.uniform((100_000,), seed=7))
    drawn = model.predict_on_batch({"uniform": uniform, "intervals": np.float32(intervals)})
    for levels, (low, high), density in zip(drawn, intervals, DENSITIES.values(), strict=True):
        assert np.all((levels >= np.float32(low)) & (levels < np.float32(high)))
        assert kolmogorov_smirnov(levels.astype("float64"), density[1], low, high) < 2.7


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.75, 1.0), (0.0, 0.05), (0.3, 0.35)])
def test_drawn_levels_have_the_histogram_of_the_quantiles(name, part):
    objective = DENSITIES[name][0]
    edges = objective.host_quantile(np.linspace(*part, 11))
    counts = np.histogram(draw(objective, edges[[0, -1]]), edges)[0]
    # Ten cells of equal probability; rounded to float32 an end may cost a draw or two.
    assert counts.sum() >= 100_000 - 5
    assert np.abs(counts - 10_000).max() < 5.5 * np.sqrt(10_000)


@pytest.mark.parametrize("name", DENSITIES)
def test_extreme_uniform_numbers_stay_inside(name):
    objective, _, intervals = DENSITIES[name]
    for low, high in intervals:
        first, last = draw(objective, (low, high), np.float32([0.0, LARGEST]))
        assert max(np.float32(low), 0.0) <= first < last < np.float32(high)
        assert first > 0.0
        assert last < INFINITE


@pytest.mark.parametrize("objective", [UniformTime(), LogitNormalTime(), LogitNormalTime(0.0, 9.0)])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 1e-3), (0.999, 1.0)])
def test_extreme_times_have_finite_losses(objective, interval):
    levels = draw(objective, interval, np.float32([0.0, LARGEST]))
    for weighting in (Constant(), MinSNR(), P2(), P2(2.0)):
        _, c_out, _, _ = Velocity().coefficients(levels, RectifiedFlow())
        weight = weighting.output_weight(RectifiedFlow().log_snr(levels), c_out)
        assert np.all(np.isfinite(ops.convert_to_numpy(weight)))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-INFINITE, INFINITE),
        (5.0, 6.0),
        (9.0, INFINITE),
        (-8.0, -7.0),
        (-INFINITE, -10.0),
        (-1.0, 9.0),
    ],
)
def test_truncated_normal_is_exact_in_both_tails(low, high):
    uniform = keras.random.uniform((100_000,), seed=3)
    ends = ops.convert_to_tensor([low, high], "float32")
    z = ops.convert_to_numpy(truncated_normal(uniform, ends[0], ends[1])).astype("float64")
    assert kolmogorov_smirnov(z, normal_cumulative(lambda z: z), low, high) < 2.7


def test_normal_quantiles_on_the_host():
    probability = np.array([[0.0, 0.025], [0.5, 1.0]])
    expected = [[-INFINITE, NormalDist().inv_cdf(0.025)], [0.0, INFINITE]]
    np.testing.assert_allclose(host_quantile(probability), expected, atol=1e-15)


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
    for high in (1000.0, 4096.0, 999.0):
        levels = draw(UniformTimesteps(5000), (0.0, high), np.float32([LARGEST, 0.0]))
        np.testing.assert_array_equal(levels, [high - 1, 0.0])


def test_quantiles_cut_the_density_into_equal_parts():
    edges = LogNormalSigma().host_quantile(np.arange(6) / 5)
    assert (edges[0], edges[-1]) == (0.0, INFINITE)
    np.testing.assert_array_equal(
        UniformTimesteps(1000).host_quantile(np.arange(5) / 4), [0, 250, 500, 750, 1000]
    )
    for objective, _, _ in DENSITIES.values():
        ends = tuple(objective.host_quantile(np.array([0.0, 1.0])))
        assert ends == pytest.approx(objective.support, rel=1e-15)
        assert ends[0] >= objective.support[0]
        assert ends[1] <= objective.support[1]


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: LogNormalSigma(p_std=0.0), "p_std=0.0"),
        (lambda: LogNormalSigma(p_mean=float("inf")), "p_mean=inf"),
        (lambda: LogitNormalTime(mean=float("nan")), "mean=nan"),
        (lambda: LogitNormalTime(std=-1.0), "std=-1.0"),
        (lambda: UniformTime(low=-0.1), "low=-0.1"),
        (lambda: UniformTime(low=0.5, high=0.5), "high=0.5"),
        (lambda: UniformTime(high=1.5), "high=1.5"),
        (lambda: LogUniformSigma(sigma_min=0.0), "sigma_min=0.0"),
        (lambda: LogUniformVariance(2.0, 1.0), "sigma_max=1.0"),
        (lambda: UniformTimesteps(0), "num_timesteps=0"),
        (lambda: UniformTimesteps(10, weighting="min_snr"), "weighting='min_snr'"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make()


@pytest.mark.parametrize(
    "objective",
    [
        UniformTimesteps(50, weighting=MinSNR(3.0)),
        UniformTimesteps(50, weighting=Constant()),
        LogNormalSigma(-0.5, 1.0, weighting=P2(0.5, 2.0)),
        UniformTime(1e-5, 0.9, weighting=MinSNR(2.0)),
        LogitNormalTime(0.5, 0.8),
        LogUniformSigma(0.1, 5.0),
        LogUniformVariance(0.1, 5.0, weighting=P2()),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_config_round_trip(objective):
    config = keras.saving.serialize_keras_object(objective)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(objective)
    assert keras.saving.serialize_keras_object(copy) == config

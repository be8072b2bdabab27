import itertools
import json
import warnings

import numpy as np
import pytest

from keras_cdiff.curriculum.clusters import (
    Clusters,
    quantile_clusters,
    snr_clusters,
    uniform_clusters,
)
from keras_cdiff.objectives import (
    LogitNormalTime,
    LogNormalSigma,
    LogUniformSigma,
    LogUniformVariance,
    UniformTime,
    UniformTimesteps,
)
from keras_cdiff.schedules import EDM, VE, VP, Cosine, LinearBeta, RectifiedFlow

pytestmark = pytest.mark.backend_free

SCHEDULES = {"linear": LinearBeta, "cosine": Cosine}


class GivenLogSNR:
    """A schedule of timesteps with any log SNR that one likes."""

    def __init__(self, log_snr):
        self.log_snr = np.asarray(log_snr, dtype=np.float64)
        self.num_timesteps = len(self.log_snr)
        self.bounds = (0.0, float(self.num_timesteps))

    def alpha_sigma(self, level):
        log_snr = self.log_snr[np.asarray(level, dtype=int)]
        return np.exp(log_snr / 2), np.ones_like(log_snr)


def partition_cost(values, edges):
    total = 0.0
    for left, end in itertools.pairwise(int(edge) for edge in edges):
        if end - left > 1:
            centre = round((left + end - 1 + 1) / 2)
            total += sum(abs(value - values[centre]) for value in values[left:end])
    return total


def cheapest_by_brute_force(values, num_clusters):
    inner = itertools.combinations(range(1, len(values)), num_clusters - 1)
    return min(partition_cost(values, (0, *edges, len(values))) for edges in inner)


def quiet_snr_clusters(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return snr_clusters(*args, **kwargs)


# Clusters


@pytest.mark.parametrize(
    ("order", "cumulative", "expected"),
    [
        ("easy_to_hard", True, [(60, 100), (30, 100), (10, 100), (0, 100)]),
        ("hard_to_easy", True, [(0, 10), (0, 30), (0, 60), (0, 100)]),
        ("easy_to_hard", False, [(60, 100), (30, 60), (10, 30), (0, 10)]),
        ("hard_to_easy", False, [(0, 10), (10, 30), (30, 60), (60, 100)]),
    ],
)
def test_stage_intervals_of_every_regime(order, cumulative, expected):
    clusters = Clusters([0, 10, 30, 60, 100])
    stages = [clusters.stage_interval(n, order, cumulative) for n in range(1, 5)]
    assert stages == expected
    assert all(isinstance(bound, float) for stage in stages for bound in stage)


@pytest.mark.parametrize("order", ["easy_to_hard", "hard_to_easy"])
@pytest.mark.parametrize("num_clusters", [1, 2, 7])
def test_stages_cover_the_range(order, num_clusters):
    clusters = uniform_clusters(LinearBeta(100), num_clusters)
    stages = range(1, num_clusters + 1)
    assert clusters.stage_interval(num_clusters, order) == clusters.full_interval == (0.0, 100.0)

    widths = [np.diff(clusters.stage_interval(n, order))[0] for n in stages]
    assert np.all(np.diff(widths) > 0)

    alone = sorted(clusters.stage_interval(n, order, cumulative=False) for n in stages)
    assert [low for low, _ in alone] == clusters.edges[:-1].tolist()
    assert [high for _, high in alone] == clusters.edges[1:].tolist()


def test_default_regime_is_easy_to_hard_and_cumulative():
    clusters = Clusters([0, 10, 30])
    assert clusters.stage_interval(1) == clusters.stage_interval(1, "easy_to_hard", True)


@pytest.mark.parametrize("stage", [0, 4, -1, 1.5, None])
def test_stage_out_of_range(stage):
    with pytest.raises(ValueError, match=r"one of 1\.\.3.*Received: stage="):
        Clusters([0, 1, 2, 3]).stage_interval(stage)


def test_unknown_order():
    with pytest.raises(ValueError, match=r"easy_to_hard.*Received: order='random'"):
        Clusters([0, 1]).stage_interval(1, "random")


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([0.0], "at least two edges"),
        ([], "at least two edges"),
        ([[0.0, 1.0]], r"shape \(1, 2\)"),
        ([0, 5, 5, 10], r"edges\[1\]=5.0, edges\[2\]=5.0"),
        ([0, 7, 5, 10], r"edges\[1\]=7.0, edges\[2\]=5.0"),
        ([0, float("nan"), 1], r"edges\[0\]=0.0, edges\[1\]=nan"),
        ([0, float("inf"), float("inf")], r"edges\[1\]=inf, edges\[2\]=inf"),
        ([float("inf"), 1], r"edges\[0\]=inf, edges\[1\]=1.0"),
        ([0, float("-inf"), 1], r"edges\[0\]=0.0, edges\[1\]=-inf"),
    ],
)
def test_bad_edges_are_named(edges, message):
    with pytest.raises(ValueError, match=message):
        Clusters(edges)


@pytest.mark.parametrize(
    "edges", [[0, 3, 7], [0.0, 0.5, np.inf], [-np.inf, 0.0, np.inf], np.arange(4, dtype="int32")]
)
def test_config_survives_strict_json(edges):
    clusters = Clusters(edges, name="mine")
    text = json.dumps(clusters.get_config(), allow_nan=False)
    again = Clusters.from_config(json.loads(text))
    assert again == clusters
    assert hash(again) == hash(clusters)
    np.testing.assert_array_equal(again.edges, edges)


def test_clusters_are_values():
    given = np.array([0.0, 1.0, 2.0])
    clusters = Clusters(given)
    given[1] = 5.0
    assert clusters.edges.tolist() == [0.0, 1.0, 2.0]
    assert clusters.edges.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        clusters.edges[0] = 1.0
    with pytest.raises(AttributeError):
        clusters.name = "other"
    assert clusters != Clusters([0.0, 1.0, 3.0])
    assert clusters != Clusters([0.0, 1.0, 2.0], name="other")
    assert clusters != "clusters"


# Uniform


@pytest.mark.parametrize("num_timesteps", [7, 100, 1000])
@pytest.mark.parametrize("num_clusters", [1, 2, 3, 5, 7])
def test_uniform_timesteps_differ_by_at_most_one(num_timesteps, num_clusters):
    clusters = uniform_clusters(LinearBeta(num_timesteps), num_clusters)
    widths = np.diff(clusters.edges)
    assert clusters.num_clusters == num_clusters
    assert clusters.full_interval == (0.0, num_timesteps)
    assert np.all(clusters.edges == np.round(clusters.edges))
    assert widths.max() - widths.min() <= 1
    if num_timesteps % num_clusters == 0:
        assert widths.max() == widths.min()


def test_uniform_on_a_continuous_schedule():
    clusters = uniform_clusters(EDM(0.5, 4.5), 4)
    np.testing.assert_allclose(clusters.edges, [0.5, 1.5, 2.5, 3.5, 4.5], rtol=1e-15)


# SNR


@pytest.mark.parametrize("num_clusters", [2, 5, 10, 20])
@pytest.mark.parametrize("snr", ["log", "raw"])
@pytest.mark.parametrize("num_timesteps", [100, 1000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_snr_matches_golden(golden, name, num_timesteps, snr, num_clusters):
    data = golden("clustering")
    key = f"{name}_T{num_timesteps}/{snr}"
    clusters = quiet_snr_clusters(SCHEDULES[name](num_timesteps), num_clusters, snr)
    cost = partition_cost(data[f"in/{key}"], clusters.edges)
    np.testing.assert_allclose(cost, data[f"out/{key}/total_cost_N{num_clusters}"], rtol=1e-9)
    assert data.config["unique"][f"{key}/N{num_clusters}"]
    np.testing.assert_array_equal(clusters.edges, data[f"out/{key}/edges_N{num_clusters}"])


@pytest.mark.parametrize("case", range(7))
def test_snr_matches_golden_on_small_arrays(golden, case):
    data = golden("clustering")
    values = data[f"in/small/{case}"]
    num_clusters = data.config["small"][str(case)]["N"]
    clusters = quiet_snr_clusters(GivenLogSNR(values), num_clusters)
    assert clusters.num_clusters == num_clusters
    np.testing.assert_allclose(
        partition_cost(values, clusters.edges),
        data[f"out/small/{case}/total_cost"],
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("num_clusters", [1, 2, 3, 4])
@pytest.mark.parametrize("num_timesteps", [4, 7, 10])
@pytest.mark.parametrize("kind", ["falling", "any", "tied"])
def test_snr_is_the_optimum_of_all_partitions(kind, num_timesteps, num_clusters):
    random = np.random.default_rng(num_timesteps)
    for _ in range(5):
        values = random.normal(size=num_timesteps)
        if kind == "falling":
            values = np.sort(values)[::-1]
        elif kind == "tied":
            values = np.round(values)
        clusters = quiet_snr_clusters(GivenLogSNR(values), num_clusters)
        assert clusters.num_clusters == num_clusters
        assert clusters.full_interval == (0.0, num_timesteps)
        cheapest = cheapest_by_brute_force(values, num_clusters)
        assert partition_cost(values, clusters.edges) == pytest.approx(
            cheapest, rel=1e-9, abs=1e-12
        )


def test_ties_do_not_depend_on_rounding():
    # Partitions of equal values all cost nothing: the last cluster starts as early as it can.
    steady = quiet_snr_clusters(GivenLogSNR(np.full(9, 0.3)), 3)
    assert steady.edges.tolist() == [0, 1, 2, 9]
    # Equal steps, whole or not exact in binary, tie in the same way.
    whole, inexact = np.arange(30.0, 0.0, -1.0), np.arange(30.0, 0.0, -1.0) * 0.1
    assert quiet_snr_clusters(GivenLogSNR(whole), 4) == quiet_snr_clusters(GivenLogSNR(inexact), 4)


@pytest.mark.parametrize(
    ("num_clusters", "edges"),
    [
        (5, "0 153 393 623 822 1000"),
        (
            20,
            "0 14 39 74 119 171 230 291 355 418 480 541 600 656 709 761 812 861 908 954 1000",
        ),
    ],
)
def test_snr_edges_of_the_linear_schedule(num_clusters, edges):
    clusters = snr_clusters(LinearBeta(1000), num_clusters)
    assert clusters.edges.tolist() == [float(edge) for edge in edges.split()]


def test_single_timesteps_are_said_aloud():
    with pytest.warns(
        UserWarning, match=r"1 of 20 clusters .*: 20 \(timestep 999\).*fewer clusters"
    ):
        clusters = snr_clusters(Cosine(1000), 20)
    assert clusters.stage_interval(1) == (999.0, 1000.0)


def test_raw_snr_is_degenerate_on_the_linear_schedule():
    with pytest.warns(UserWarning, match="single timestep"):
        clusters = snr_clusters(LinearBeta(1000), 20, snr="raw")
    assert clusters.edges[-2] == 260
    assert np.sum(np.diff(clusters.edges) <= 2) == 10


@pytest.mark.parametrize("num_clusters", [1, 2, 5, 20])
def test_log_snr_of_sigma_is_equal_widths_in_ln_sigma(num_clusters):
    schedule = EDM(0.002, 80.0)
    clusters = snr_clusters(schedule, num_clusters)
    assert clusters.full_interval == (0.0, np.inf)
    inner = np.log(np.geomspace(0.002, 80.0, num_clusters + 1)[1:-1])
    cell = np.log(80.0 / 0.002) / 1000
    np.testing.assert_allclose(np.log(clusters.edges[1:-1]), inner, atol=1.01 * cell)


def test_snr_on_a_continuous_schedule_with_bounds():
    clusters = snr_clusters(RectifiedFlow(), 4)
    assert clusters.full_interval == (0.0, 1.0)
    # log SNR = 2 ln((1 - t) / t) is odd about t = 1/2, where it is also flattest.
    np.testing.assert_allclose(clusters.edges + clusters.edges[::-1], 1.0, atol=0.01)
    widths = np.diff(clusters.edges)
    assert widths[1] > widths[0]
    assert widths[2] > widths[3]


def test_unknown_snr():
    with pytest.raises(ValueError, match=r"Received: snr='square'"):
        snr_clusters(LinearBeta(10), 2, snr="square")


# Quantiles


@pytest.mark.parametrize("num_clusters", [5, 10, 20])
def test_quantiles_match_golden(golden, num_clusters):
    clusters = quantile_clusters(LogNormalSigma(-1.2, 1.2), num_clusters)
    assert clusters.full_interval == (0.0, np.inf)
    np.testing.assert_allclose(
        clusters.edges[1:-1],
        golden("clustering")[f"out/quantile/Pmean-1.2_Pstd1.2/edges_N{num_clusters}"],
        rtol=1e-12,
    )


def test_quantiles_of_edm():
    clusters = quantile_clusters(LogNormalSigma(), 5)
    np.testing.assert_allclose(clusters.edges[1:-1], [0.1097, 0.2222, 0.4082, 0.8269], atol=5e-5)


@pytest.mark.parametrize(("num_timesteps", "num_clusters"), [(1000, 20), (10, 3), (7, 7), (5, 1)])
def test_quantiles_of_timesteps_are_whole_and_even(num_timesteps, num_clusters):
    edges = quantile_clusters(UniformTimesteps(num_timesteps), num_clusters).edges
    assert np.all(edges == np.round(edges))
    assert edges[0] == 0
    assert edges[-1] == num_timesteps
    assert np.ptp(np.diff(edges)) <= 1


# Continuous schedules, each with an objective that draws its levels


@pytest.mark.parametrize("num_clusters", [5, 20])
@pytest.mark.parametrize(
    ("schedule", "objective"),
    [
        (EDM(), LogNormalSigma()),
        (VP(), UniformTime(low=1e-5)),
        (VE(), LogUniformVariance()),
        (RectifiedFlow(), UniformTime()),
        (RectifiedFlow(), LogitNormalTime()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_continuous_clusters_divide_the_support(schedule, objective, num_clusters):
    for clusters in (
        snr_clusters(schedule, num_clusters),
        quantile_clusters(objective, num_clusters),
    ):
        assert clusters.num_clusters == num_clusters
        np.testing.assert_allclose(clusters.full_interval, objective.support, rtol=1e-14)
        assert clusters.full_interval[0] >= objective.support[0]
        assert clusters.full_interval[1] <= objective.support[1]
        # Training restricts levels in float32: no cluster may vanish there.
        assert np.all(np.diff(clusters.edges.astype("float32")) > 0)


def test_uniform_clusters_of_the_flow():
    edges = uniform_clusters(RectifiedFlow(), 4).edges
    np.testing.assert_array_equal(edges, [0.0, 0.25, 0.5, 0.75, 1.0])


def test_quantiles_of_uniform_and_log_uniform_levels():
    edges = quantile_clusters(UniformTime(0.2, 0.7), 5).edges
    np.testing.assert_allclose(edges, np.linspace(0.2, 0.7, 6), rtol=1e-12)
    edges = quantile_clusters(LogUniformSigma(0.02, 100.0), 5).edges
    np.testing.assert_allclose(edges, np.geomspace(0.02, 100.0, 6), rtol=1e-12)
    squared = quantile_clusters(LogUniformVariance(0.02, 100.0), 5).edges
    np.testing.assert_allclose(squared, edges**2, rtol=1e-12)


def test_quantiles_of_logit_normal_times_are_symmetric():
    edges = quantile_clusters(LogitNormalTime(), 4).edges
    np.testing.assert_allclose(edges + edges[::-1], 1.0, rtol=1e-12)
    # The quartiles of a normal are at 0.6745 standard deviations.
    assert edges[3] == pytest.approx(1 / (1 + np.exp(-0.67449)), rel=1e-5)


# What all three share


@pytest.mark.parametrize("num_clusters", [0, -3, 2.0, "5", None, True])
@pytest.mark.parametrize(
    ("make", "source"),
    [
        (uniform_clusters, LinearBeta(10)),
        (snr_clusters, EDM()),
        (quantile_clusters, LogNormalSigma()),
    ],
)
def test_bad_number_of_clusters(make, source, num_clusters):
    with pytest.raises(
        ValueError, match=r"`num_clusters` must be an integer.*Received: num_clusters"
    ):
        make(source, num_clusters)


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (uniform_clusters, LinearBeta(10)),
        (snr_clusters, LinearBeta(10)),
        (quantile_clusters, UniformTimesteps(10)),
    ],
)
def test_more_clusters_than_timesteps(make, source):
    with pytest.raises(ValueError, match=r"at most 10.*Received: num_clusters=11"):
        make(source, 11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert make(source, np.int64(10)).edges.tolist() == list(range(11))

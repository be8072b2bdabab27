"""Clusters of equal difficulty against sums by hand, and their file."""

import json

import numpy as np
import pytest

from keras_cdiff import curriculum, schedules, training
from keras_cdiff.curriculum import Clusters, difficulty_clusters

pytestmark = pytest.mark.backend_free


def test_timesteps_of_one_difficulty_are_cut_uniformly():
    clusters = difficulty_clusters(np.arange(1000), np.ones(1000), 8)
    np.testing.assert_array_equal(clusters.edges, np.arange(9) * 125)
    assert clusters.name == "difficulty"


def test_each_cluster_of_timesteps_has_the_same_total():
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(0.5, 1.5, 1000) / (np.arange(1000) + 20.0)
    clusters = difficulty_clusters(np.arange(1000), difficulty, 7)
    totals = np.add.reduceat(difficulty, clusters.edges[:-1].astype(int))
    # An edge is a whole timestep: each total is off by no more than one timestep's difficulty.
    share = difficulty.sum() / 7
    assert np.all(np.abs(totals - share) <= difficulty[clusters.edges[:-1].astype(int)] + 1e-3)
    assert clusters.edges[[0, -1]].tolist() == [0, 1000]
    assert np.all(np.diff(np.diff(clusters.edges)) > 0)  # easy clusters are wide


def test_timesteps_between_measured_ones_are_interpolated_and_all_are_covered():
    schedule = schedules.LinearBeta()
    levels = [1, 10, 100, 999]
    difficulty = [90.0, 4.0, 0.1, 1e-6]
    clusters = difficulty_clusters(levels, difficulty, 4, schedule)
    every = np.interp(np.arange(1000), levels, difficulty)
    np.testing.assert_array_equal(
        clusters.edges, difficulty_clusters(np.arange(1000), every, 4).edges
    )
    assert clusters.edges[[0, -1]].tolist() == [0, 1000]


def test_each_cluster_holds_a_timestep_where_one_timestep_has_all_the_difficulty():
    spike = np.zeros(100)
    for place, expected in ((99, [0, 97, 98, 99, 100]), (0, [0, 1, 2, 3, 100])):
        clusters = difficulty_clusters(np.arange(100), np.eye(100)[place] + spike, 4)
        np.testing.assert_array_equal(clusters.edges, expected)
    np.testing.assert_array_equal(difficulty_clusters([3, 7], [1.0, 1.0], 5).edges, range(3, 9))


def test_densities_on_a_continuous_schedule_are_per_log_snr():
    # The same difficulty at every log SNR: sigma in constant proportion.
    edges = difficulty_clusters([0.01, 0.3, 100.0], [2.0, 2.0, 2.0], 4, schedules.EDM()).edges
    np.testing.assert_allclose(edges, [0.0, 0.1, 1.0, 10.0, np.inf])
    # By hand: density falls linearly from 2 to 0 over a unit range, D(e) = 2 e - e^2.
    schedule = schedules.RectifiedFlow()
    levels = schedule.level_at(np.exp(np.array([0.0, 0.5])))  # log SNR 0 and -1
    edges = difficulty_clusters(levels, [2.0, 0.0], 2, schedule).edges
    # The trapezoid rule has one cell here, within which the total is spread evenly.
    np.testing.assert_allclose(schedule.level_at(np.exp(0.25)), edges[1])
    assert edges[[0, 2]].tolist() == [0.0, 1.0]


def test_totals_of_intervals_are_spread_evenly_within_them():
    edges = difficulty_clusters([0.0, 0.5, 1.0], [3.0, 1.0], 4).edges
    np.testing.assert_allclose(edges, [0.0, 1 / 6, 1 / 3, 0.5, 1.0])
    edges = difficulty_clusters([0, 500, 1000], [3.0, 1.0], 4).edges
    np.testing.assert_array_equal(edges, [0, 167, 333, 500, 1000])
    # Timesteps beyond are as difficult as the outermost.
    edges = difficulty_clusters([100, 300, 500], [1.0, 1.0], 2, schedules.LinearBeta()).edges
    np.testing.assert_array_equal(edges, [0, 500, 1000])


def test_clusters_of_another_coordinate_or_of_a_part_are_refused(tmp_path):
    flow = difficulty_clusters([0.1, 0.5, 0.9], [1.0, 2.0, 1.0], 3, schedules.RectifiedFlow())
    assert flow.coordinate == "time"
    flow.save(tmp_path / "flow.json")
    assert Clusters.load(tmp_path / "flow.json").coordinate == "time"
    with pytest.raises(ValueError, match=r"coordinate, sigma.*in time"):
        training.resolve("dit_emoji16", clusters=str(tmp_path / "flow.json"))
    training.resolve("sit_emoji16", clusters=str(tmp_path / "flow.json"))
    with pytest.raises(ValueError, match=r"cover.*0\.002 to 80.*Received: clusters from 0 to 1"):
        training.resolve("dit_emoji16", clusters=Clusters([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="coordinate, timestep"):
        flow.check_coordinate("timestep")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [1]}, r"at least two.*Received: levels=\[1"),
        ({"levels": [1, 1, 2]}, "ascend strictly"),
        ({"levels": [0.0, 1.0, np.inf]}, "finite"),
        ({"difficulty": [1.0]}, "must be 3 values, one a level, or 2"),
        ({"difficulty": [1.0, -1.0, 2.0]}, "none negative"),
        ({"difficulty": [0.0, 0.0, 0.0]}, "not all zero"),
        ({"difficulty": [1.0, np.nan, 2.0]}, "finite"),
        ({"num_clusters": 0}, "num_clusters=0"),
        ({"num_clusters": 4}, "at most 3"),
        ({"schedule": schedules.LinearBeta(2)}, r"whole timesteps in 0\.\.1"),
        ({"schedule": schedules.LinearBeta(), "levels": [0.5, 1.0, 2.0]}, "whole timesteps"),
        ({"schedule": schedules.RectifiedFlow(), "levels": [0.0, 0.5, 0.7]}, "signal and noise"),
        ({"schedule": schedules.VP(), "levels": [0.1, 0.5, 2.0]}, "lie on the schedule"),
    ],
)
def test_bad_arguments(changes, message):
    good = {"levels": [0, 1, 2], "difficulty": [1.0, 1.0, 1.0], "num_clusters": 2}
    with pytest.raises(ValueError, match=message):
        difficulty_clusters(**{**good, **changes})


@pytest.mark.parametrize("edges", [[0, 10, 1000], [0.0, 0.25, np.inf]])
def test_a_file_gives_the_clusters_back(tmp_path, edges):
    clusters = Clusters(edges, "measured")
    path = tmp_path / "folder" / "clusters.json"
    clusters.save(path)
    assert Clusters.load(path) == clusters
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict["name"] == "measured"
    assert [file.name for file in path.parent.iterdir()] == ["clusters.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"edges": [3, 2]}', None])
def test_what_is_no_file_of_clusters_is_refused(tmp_path, text):
    path = tmp_path / "clusters.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"must be JSON such as.*clusters\.json"):
        curriculum.Clusters.load(path)

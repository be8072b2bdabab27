"""The report: its words follow the numbers, its files hold them all."""

import csv
import warnings

import numpy as np
import pytest
from PIL import Image

from keras_cdiff import schedules, study, training
from keras_cdiff.curriculum import Clusters
from keras_cdiff.objectives import LogNormalSigma, UniformTimesteps
from keras_cdiff.study.page import entropy_findings, loss_findings, quality_findings
from keras_cdiff.study.plots import plot_entropy
from keras_cdiff.study.relative_entropy import EntropyCurve

pytestmark = pytest.mark.backend_free

STEPS = list(range(0, 501, 20))


def expert(number, interval, rate, floor=100.0, quality=True):
    loss = 0.2 + 0.8 * np.exp(-rate * np.array(STEPS))
    return study.ExpertCurves(
        number=number,
        interval=interval,
        steps=STEPS,
        loss=loss.tolist(),
        loss_error=[0.01] * len(STEPS),
        quality_steps=[0, 250, 500] if quality else [],
        quality=[500.0, 100.0 + 0.5 / rate, 100.0 + 0.1 / rate] if quality else [],
        floor=floor if quality else None,
        seconds=60.0,
    )


def experts(rates, edges=(0.0, 0.2, 0.5, 1.5, np.inf), **options):
    return [
        expert(i + 1, (edges[i], edges[i + 1]), rate, **options) for i, rate in enumerate(rates)
    ]


def curve(schedule, levels, estimate):
    levels, estimate = np.array(levels, dtype=float), np.array(estimate, dtype=float)
    return EntropyCurve(schedule, levels, estimate, 0.01 * estimate, 192)


VALLEY = (0.0, 0.2, 0.5, 1.5, 3.0, 5.0, np.inf)
FALLING = curve(schedules.LinearBeta(), [1, 10, 100, 999], [90, 4, 0.1, 1e-6])
FLAT = curve(schedules.EDM(), [0.002, 0.1, 1.0, 80.0], [48, 48, 47, 48])
PEAKED = curve(schedules.LinearBeta(), [1, 10, 100, 999], [1, 2, 9, 0.5])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    config = training.resolve("dit_emoji16", num_clusters=3)
    measured = experts([0.01, 0.02, 0.04, 0.08])
    page = study.write_report(folder, config, [FLAT, FALLING], measured, conditions=["Measured."])
    assert page == folder / "REPORT.md"
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_each_figure_is_there_twice_and_named_on_the_page(report):
    page = (report / "REPORT.md").read_text()
    names = ["clusters", "iterations", "losses", "qualities"]
    names += ["relative_entropy_EDM", "relative_entropy_LinearBeta"]
    assert sorted(path.stem for path in report.glob("*.png")) == names
    for name in names:
        assert f"({name}.png)" in page
        image = np.asarray(Image.open(report / f"{name}.png").convert("RGB"))
        assert image.min() < 128 < image.max()


def test_every_number_is_in_a_table(report):
    per_expert = rows(report / "experts.csv")
    assert [row["expert"] for row in per_expert] == ["1", "2", "3", "4"]
    needed = [float(row["iterations_90%"]) for row in per_expert]
    np.testing.assert_allclose(needed, np.log(10) / np.array([0.01, 0.02, 0.04, 0.08]), rtol=0.15)
    assert float(per_expert[1]["log_snr_high"]) == pytest.approx(-2 * np.log(0.2))
    assert float(per_expert[1]["log_snr_low"]) == pytest.approx(-2 * np.log(0.5))
    losses = rows(report / "losses.csv")
    assert len(losses) == 4 * len(STEPS)
    assert float(losses[0]["normalised"]) == 1.0
    assert len(rows(report / "qualities.csv")) == 12
    entropies = rows(report / "relative_entropy.csv")
    assert [row["schedule"] for row in entropies] == ["EDM"] * 4 + ["LinearBeta"] * 4
    for row in entropies:
        assert float(row["nats_per_dimension"]) == pytest.approx(float(row["nats"]) / 192)
    # Of a step of sigma: d log SNR / d sigma = -2 / sigma.
    assert float(entropies[2]["nats_by_steps_of_level"]) == pytest.approx(47 * 4)
    assert {row["clusters"] for row in rows(report / "clusters.csv")} == {
        *("uniform", "snr", "quantile"),
        *("difficulty: relative_entropy", "difficulty: convergence"),
    }


def test_its_clusters_are_taken_by_a_run(report):
    for name in ("relative_entropy", "convergence"):
        path = report / f"clusters_{name}.json"
        config = training.resolve("dit_emoji16", clusters=str(path))
        assert config["curriculum"]["num_clusters"] == 3
        assert config["curriculum"]["edges"] == Clusters.load(path).get_config()["edges"]
        assert config["curriculum"]["clusters"] == f"difficulty: {name}"
    # Twice the iterations in the first expert's quarter of the density: narrower there.
    edges = Clusters.load(report / "clusters_convergence.json").edges
    assert edges[[0, -1]].tolist() == [0.0, np.inf]
    assert edges[1] < training.resolve("dit_emoji16", num_clusters=3)["curriculum"]["edges"][1]


def test_a_page_is_the_same_whenever_it_is_written(report, tmp_path):
    plot_entropy(FLAT, tmp_path / "relative_entropy_EDM")
    assert (tmp_path / "relative_entropy_EDM.png").read_bytes() == (
        report / "relative_entropy_EDM.png"
    ).read_bytes()


def test_a_study_without_experts(tmp_path):
    config = training.resolve("dit_b_2_imagenet256")
    study.write_report(tmp_path, config, [PEAKED])
    page = (tmp_path / "REPORT.md").read_text()
    assert "Convergence" not in page
    assert not list(tmp_path.glob("losses.*"))
    clusters = Clusters.load(tmp_path / "clusters_relative_entropy.json")
    assert clusters.num_clusters == 20
    assert clusters.edges[[0, -1]].tolist() == [0, 1000]


def test_clusters_of_equal_iterations_in_closed_form():
    objective = LogNormalSigma(p_mean=0.0, p_std=1.0)
    edges = [0.0, *objective.host_quantile(np.array([0.25, 0.5, 0.75])), np.inf]
    measured = experts([0.02, 0.04, 0.04, 0.04], edges)
    needed = [study.iterations_to_reach(e.steps, e.loss) for e in measured]
    found = study.convergence_clusters(measured, objective, 2).edges
    # Where the cumulative of the iterations is half, within the second quarter.
    share = (sum(needed) / 2 - needed[0]) / needed[1]
    assert found[1] == pytest.approx(objective.host_quantile(np.array([0.25 + 0.25 * share]))[0])
    measured = experts([0.01, 0.02, 0.02, 0.04], [0, 25, 50, 75, 100])
    found = study.convergence_clusters(measured, UniformTimesteps(100), 5)
    needed = [study.iterations_to_reach(e.steps, e.loss) for e in measured]
    every = np.repeat(np.array(needed) / 25, 25)
    totals = np.add.reduceat(every, found.edges[:-1].astype(int))
    assert np.all(np.abs(totals - sum(needed) / 5) <= every.max())


def test_words_follow_the_entropies():
    assert "falls with noise, as the paper says" in " ".join(entropy_findings(FALLING))
    flat = " ".join(entropy_findings(FLAT))
    assert "hardly depends on noise, against the paper" in flat
    assert "step of sigma apart, instead of log SNR, it falls" in flat
    peaked = " ".join(entropy_findings(PEAKED))
    assert "has its peak between, against the paper" in peaked
    assert "highest at timestep 100" in peaked


def test_words_follow_the_losses():
    falling = " ".join(loss_findings(experts([0.01, 0.02, 0.04, 0.08])))
    assert "falls with noise, as the paper says" in falling
    assert "Slowest was expert 1 on [0, 0.2), fastest expert 4 on [1.5, inf)" in falling
    assert "rank correlation with noise is -1.00" in falling
    assert "to 50%" in falling.lower()
    mixed = " ".join(loss_findings(experts([0.01, 0.02, 0.03, 0.04, 0.03, 0.01], VALLEY)))
    assert "both ends are hard" in mixed
    assert "took 1.0 times as long as the last" in mixed
    rising = " ".join(loss_findings(experts([0.08, 0.04, 0.02, 0.01])))
    assert "rises with noise, against the paper" in rising
    slow = experts([0.002, 0.02, 0.04, 0.08])
    assert "Expert 1 had not converged" in " ".join(loss_findings(slow))
    slow[1].loss = [1.0] * len(STEPS)
    assert "The loss of expert 2 did not fall" in " ".join(loss_findings(slow))


def test_words_follow_the_qualities():
    text = " ".join(quality_findings(experts([0.01, 0.02, 0.04, 0.08])))
    assert "2.5%, 1.2%, 0.6% and 0.3%" in text
    assert "falls with noise" in text
    assert quality_findings(experts([0.01, 0.02, 0.04, 0.08], quality=False)) == []
    (text,) = quality_findings(experts([0.01, 0.02, 0.04, 0.08], floor=499.0))
    assert "hardly better than untrained" in text


def test_clusters_of_single_timesteps_are_shown_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.write_report(tmp_path, training.resolve("dit_b_2_imagenet256"), [FALLING], (), 40)
    assert Clusters.load(tmp_path / "clusters_relative_entropy.json").num_clusters == 40


@pytest.mark.parametrize(
    "schedule",
    [schedules.LinearBeta(), schedules.EDM(), schedules.RectifiedFlow(), schedules.VP()],
)
def test_spread_levels_can_be_measured(schedule):
    levels = study.spread_levels(schedule, 7)
    assert np.all(np.diff(levels) > 0)
    images = np.tanh(np.random.default_rng(0).normal(size=(12, 2, 2, 3)))
    measured = study.measure_entropy(images, schedule, 7, num_draws=24)
    assert np.all(np.isfinite(measured.estimate) & (measured.estimate > 0))
    assert np.all(np.diff(measured.log_snr) < 0)
    assert measured.num_dimensions == 12
    with pytest.raises(ValueError, match="num_levels=1"):
        study.spread_levels(schedule, 1)

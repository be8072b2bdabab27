"""The evidence's statistics have closed forms, and its page keeps what was written by hand."""

import dataclasses
import itertools
import json
import re
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.backend_free

STEPS = np.arange(100, 1001, 100)
SEEN = {"feature_width": 1280, "num_logits": 1000, "image_size": [96, 96], "resize": "clean"}
EXTRACTOR = {"name": "mobilenet_v2", "version": "664a61dd", **SEEN}
ALIKE = {
    **{"data": "emoji_train.npz", "steps": 1000, "batch_size": 32, "trained_by": "jax"},
    **{"extractor": EXTRACTOR, "curve_samples": 100, "final_samples": 200, "reference_images": 200},
    **{"size": "cpu", "parameters": 12_345, "cluster_edges": [0.0, 500.0, 1000.0]},
    **{"seconds_per_step": 0.01, "study_steps": 0, "measured_by": "torch", "keras_cdiff": "1.0"},
}


def record(method="vanilla", seed=0, distances=None, setting="small", rate=0.002, **fields):
    distances = 1000.0 - 0.5 * STEPS if distances is None else np.asarray(distances, dtype=float)
    points = zip(STEPS.tolist(), distances.tolist(), strict=True)
    plain = method in ("vanilla", "weighted")
    return {
        **ALIKE,
        "run": f"{setting}/{method}/lr{rate:g}/seed{seed}",
        "setting": setting,
        "method": method,
        "seed": seed,
        "learning_rate": rate,
        "curriculum": None if plain else {"kind": "paper", "num_clusters": 2},
        "stages": stages(100, 300),
        "curve": [
            {"step": s, "frechet_distance": d, "cluster_loss": [0.2, 0.1]} for s, d in points
        ],
        "final": {"frechet_distance": distances[-1].item(), "kernel_distance": 0.5},
        **fields,
    }


def stages(*steps):
    return [{"stage": stage, "step": step} for stage, step in enumerate(steps, 1)]


def by_seed(*records):
    return {r["seed"]: r for r in records}


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


# Statistics.


def test_steps_to_reach(program):
    reach, steps, falling = program.analysis.steps_to_reach, [100, 200, 300, 400], [9, 7, 6, 3]
    # Half of the way from 9 to 7; between 6 and 3; at points; nothing is known before the first.
    expected = {8: 150, 5.25: 325, 6: 300, 3: 400, 2.99: np.inf, 9: 100, 50: 100}
    assert {target: reach(steps, falling, target) for target in expected} == expected
    assert reach(steps, [9, 5, 8, 3], 7) == 150  # the first time, of two
    assert reach(steps, [9, np.nan, 6, 3], 6.5) == 300
    assert reach(steps, [np.nan] * 4, 6.5) == np.inf
    found = reach([1, 3], [[4, 0], [2, 2], [9, 1]], [1, 1, 5])
    np.testing.assert_allclose(found, [2.5, np.inf, 2.0])


@pytest.mark.parametrize("steps", [[1, 2], [1, 3, 3], [3, 2, 1]])
def test_steps_must_fit_the_distances(program, steps):
    with pytest.raises(ValueError, match=r"must ascend.*Received: steps="):
        program.analysis.steps_to_reach(steps, [3.0, 2.0, 1.0], 2.0)


def test_resamples_are_drawn_by_a_fixed_seed(program):
    values = dict(enumerate(np.random.default_rng(1).normal(size=6)))
    found, again = (program.analysis.mean_over_seeds(values) for _ in range(2))
    assert found == again
    assert min(values.values()) < found.interval[0] < found.value


def test_interval_of_a_mean_is_that_of_all_resamples(program):
    values = [3.0, 1.0, 4.0, 10.0]
    means = sorted(np.mean(draw) for draw in itertools.product(values, repeat=4))
    found = program.analysis.mean_over_seeds(dict(enumerate(values)))
    assert (found.value, found.seeds) == (4.5, 4)
    # The 7th and the 250th of 256: 2.5 % are 6.4 of them.
    assert found.interval == pytest.approx((means[6], means[249]))
    three = program.analysis.mean_over_seeds(dict(enumerate(values[:3])))
    assert three.interval == (1.0, 4.0)  # one of 27 is more than 2.5 %


def test_interval_of_identical_seeds_has_no_width_and_one_seed_has_none(program):
    for count in (3, 6):
        found = program.analysis.mean_over_seeds(dict.fromkeys(range(count), 2.0))
        assert (found.value, found.interval) == (2.0, (2.0, 2.0))
    found = program.analysis.mean_over_seeds({7: 2.0})
    assert (found.value, found.interval, found.seeds) == (2.0, None, 1)
    assert program.analysis.mean_over_seeds({}) is None


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_coverage_is_that_of_normal_seeds(program, seeds):
    draws = np.random.default_rng(0).normal(size=(3000, seeds))
    intervals = [program.analysis.mean_over_seeds(dict(enumerate(d))).interval for d in draws]
    held = np.mean([low <= 0.0 <= high for low, high in intervals])
    assert held == pytest.approx(program.analysis.COVERAGE[seeds], abs=0.02)


def test_differences_are_paired_by_seed(program):
    difference = program.analysis.paired_difference
    baseline = {0: 100.0, 1: 500.0, 2: 900.0, 3: 1e6}
    values = {2: 890.0, 1: 490.0, 0: 90.0, 9: -1e6}  # seeds 3 and 9 have no partner
    found = difference(values, baseline)
    assert (found.value, found.interval, found.seeds) == (-10.0, (-10.0, -10.0), 3)
    assert difference(values, baseline, relative=True).value == pytest.approx(-10.0 / 500.0)
    assert difference({0: 1.0}, {1: 1.0}) is None
    assert difference({0: 1.0, 1: 5.0}, {1: 4.0}).interval is None


def test_relative_difference_is_that_of_each_resample(program):
    ours, theirs = np.array([90.0, 200.0, 35.0, 80.0]), np.array([100.0, 400.0, 30.0, 70.0])
    draws = map(list, itertools.product(range(4), repeat=4))
    ratios = sorted(ours[d].mean() / theirs[d].mean() - 1.0 for d in draws)
    found = program.analysis.paired_difference(
        dict(enumerate(ours)), dict(enumerate(theirs)), relative=True
    )
    assert found.interval == pytest.approx((ratios[6], ratios[249]))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-1, -2, -3], (3, 0, 0.25)),
        ([1, 2, 3, 4, 5], (0, 5, 2 / 32)),
        ([-1, -2, -3, -4, 5], (4, 1, 12 / 32)),
        ([-1, 1], (1, 1, 1.0)),
        ([0, 0, -1], (1, 0, 1.0)),
    ],
)
def test_one_sidedness_is_the_sign_test(program, differences, expected):
    values = {seed: 10.0 + d for seed, d in enumerate(differences)}
    baseline = dict.fromkeys(range(len(differences)), 10.0)
    assert program.analysis.one_sidedness(values, baseline) == pytest.approx(expected)


def test_steps_and_speed_up_are_those_to_the_last_distance(program):
    # What a seed adds to both is no noise of the ratio, if the same seeds are drawn for both.
    offsets = [0.0, 300.0, 40.0]
    vanilla = by_seed(*(record(seed=s, distances=1000 - STEPS + o) for s, o in enumerate(offsets)))
    fast = by_seed(
        *(record(seed=s, distances=1000 - 2 * STEPS + o) for s, o in enumerate(offsets)),
        record(seed=9, distances=5000 + STEPS),  # without a partner
    )
    steps_to_last, speed_up = program.analysis.steps_to_last, program.analysis.speed_up
    for function, expected in ((steps_to_last, 500.0), (speed_up, 2.0)):
        found = function(fast, vanilla)
        assert (found.value, *found.interval) == pytest.approx((expected,) * 3)
        assert (found.seeds, found.missed) == (3, 0.0)
        assert function(fast, {}) is None
    assert steps_to_last(vanilla, vanilla).value == 1000.0
    assert program.page.pace_words(None) == ""


def test_pace_counts_what_the_budget_cuts_off(program):
    vanilla = by_seed(*(record(seed=s, distances=1000 - STEPS) for s in (0, 1)))
    same, fast = vanilla[0], record(distances=1000 - 4 * STEPS)
    never = record(seed=1, distances=np.full(10, 500.0))
    words, number = program.page.pace_words, program.page.number
    # Fast and never need 375 steps together, fast alone 250.
    in_quarter = ", not reached in 25.0 % of resamples"
    most = "not reached (75.0 % of resamples)"
    texts = ("375 [250 to not reached]", "37.5 [25.0 to not reached]", "2.67 [not reached to 4.00]")
    for runs, steps, steps_interval, speed_interval, missed, expected in (
        ((fast, never), 375.0, (250.0, np.inf), (0.0, 4.0), 0.25, [t + in_quarter for t in texts]),
        ((same, never), np.inf, (1000.0, np.inf), (0.0, 1.0), 0.75, [most] * 3),
        ((never,), np.inf, None, None, None, ["not reached (1 seed)"] * 3),
        ((fast,), 250.0, None, None, None, [f"{n} (1 seed)" for n in ("250", "25.0", "4.00")]),
    ):
        pace = program.analysis.steps_to_last(by_seed(*runs), vanilla)
        ratio = program.analysis.speed_up(by_seed(*runs), vanilla)
        assert (pace.value, pace.interval) == (steps, steps_interval)
        assert (ratio.value, ratio.interval) == (1000 / steps, speed_interval)
        assert [pace.missed, ratio.missed] == [missed and pytest.approx(missed, abs=0.02)] * 2
        pace, ratio = (dataclasses.replace(e, missed=missed) for e in (pace, ratio))
        minutes = words(pace, lambda value: number(value / 10.0), miss=np.inf)
        assert [words(pace, miss=np.inf), minutes, words(ratio)] == expected


def test_last_improvement(program):
    runs = by_seed(record(seed=0), record(seed=1))  # 600 at step 800, 500 at step 1000
    assert program.analysis.last_improvement(runs) == pytest.approx(1.0 / 6.0)
    flat = by_seed(record(distances=np.full(10, 3.0)))
    assert program.analysis.last_improvement(flat) == 0.0


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.9, 0.3, 0.2, 0.3], False),  # 1.5 times its lowest
        ([0.9, 0.2, 0.8, 0.31], True),
        ([0.9, None, 0.2, None], True),  # no longer finite
        ([None], True),
        ([], False),  # measured without held-out images
    ],
)
def test_a_run_whose_loss_ends_far_above_its_lowest_diverged(program, losses, expected):
    points = [{"step": s, "loss": loss} for s, loss in enumerate(losses)] or [{"step": 0}]
    assert program.analysis.diverged({"curve": points}) is expected


def test_losses_are_compared_by_cluster_with_the_same_weights_only(program):
    def with_loss(seed, losses, **fields):
        run = record(seed=seed, **fields)
        run["curve"][-1]["cluster_loss"] = losses
        return run

    vanilla = by_seed(with_loss(0, [0.2, 0.4]), with_loss(1, [0.4, None], weighting=None))
    other = by_seed(with_loss(0, [0.1, 0.4]), with_loss(1, [0.2, 0.5], weighting="min_snr"))
    (mean, difference), (_, second) = program.analysis.cluster_losses(other, vanilla)
    assert (mean.value, mean.seeds) == (0.1, 1)
    assert (difference.value, difference.seeds) == (pytest.approx(-0.5), 1)
    assert second.value == 0.0
    assert program.analysis.cluster_losses({1: other[1]}, vanilla) == []
    assert program.analysis.cluster_losses(other, {}) == []
    elsewhere = by_seed(with_loss(0, [0.1, 0.4], cluster_edges=[0.0, 1.0, 1000.0]))
    assert program.analysis.cluster_losses(elsewhere, vanilla) == []


# Records.


def test_last_record_of_a_run_counts(program, tmp_path):
    first, last = record(distances=STEPS), record(distances=STEPS + 1)
    lines = [first, record(seed=1), {**record(), "size": "gpu"}, last]
    found = program.analysis.read_results(write_lines(tmp_path / "results.jsonl", lines), "cpu")
    assert found == [last, record(seed=1)]


def without(name):
    return json.dumps({key: value for key, value in record().items() if key != name})


@pytest.mark.parametrize(
    "line",
    [
        *('{"run": "small', "", "[]", "3", json.dumps(record(curve=[]))),
        *map(without, ("run", "stages", "data", "trained_by", "extractor")),
    ],
)
def test_damaged_lines_are_named(program, tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(record())}\n{line}\n{json.dumps(record(seed=1))}\n")
    with pytest.raises(ValueError, match=r"Line 2 of .*results.jsonl must be .* Received: "):
        program.analysis.read_results(path, "cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((n, 7) for n in ("data", "steps", "batch_size", "curve_samples", "final_samples")),
        *(("reference_images", 7), ("trained_by", "torch"), ("curve", record()["curve"][1:])),
        ("extractor", {**EXTRACTOR, "image_size": None}),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(program, field, value):
    records = [record(), record("snr", extractor=dict(EXTRACTOR))]
    assert [*program.analysis.by_method(records, ["snr", "vanilla"], 0.002)] == ["snr", "vanilla"]
    name = "points" if field == "curve" else field
    with pytest.raises(ValueError, match=rf"agree in {name}: .*lr0.002/seed0. Received: .* of"):
        program.analysis.by_method([*records, record(seed=1, **{field: value})], ["snr"], 0.002)


# Words.


def test_numbers_have_three_digits(program):
    values = (2402.7, 123456.0, 99.95, 9.996, 0.0312345, -3.14159, 2.5e-9, 0.0, float("nan"))
    texts = ["2,400", "123,000", "100", "10.0", "0.0312", "-3.14", "2.50e-09", "0", "not finite"]
    assert [program.page.number(value) for value in values] == texts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([90, 91, 92], r"^-9.00 % \[-10.0 to -8.00\]; lower in all 3; 25 %$"),
        ([110, 111, 112, 113, 114], r"; higher in all 5; 6 %$"),
        ([90, 91, 111], r"; lower in 2 and higher in 1 of 3; 100 %$"),
        ([90, 100, 100], r"; lower in 1 and higher in 0 of 3; 100 %$"),
        ([100, 100, 100], r"; lower in 0 and higher in 0 of 3; 100 %$"),
        ([50], r"^-50.0 %; 1 seed, no verdict; $"),
        ([], r"no seed in common"),
        ([90, float("nan"), 91], r"not finite"),
    ],
)
def test_verdicts_count_the_seeds(program, values, expected):
    baseline = dict.fromkeys(range(5), 100.0)
    said = program.page.verdict(dict(enumerate(values)), baseline)
    assert re.search(expected, "; ".join(said))


# The page.


@pytest.fixture
def small(program, monkeypatch):
    """A table of one setting, in place of the real ones."""
    methods = {
        "vanilla": ({"curriculum": "none"}, "vanilla"),
        "snr": ({"clusters": "snr", "num_clusters": 2, "patience": 9}, "SNR"),
        "late": ({"clusters": "snr", "num_clusters": 2, "patience": 99}, "SNR, late"),
        "preset": ({}, "the preset's"),
        "fixed": ({"clusters": "snr", "stage_steps": 5}, "control: fixed"),
        "weighted": ({"curriculum": "none", "weighting": "min_snr"}, "weighted"),
        "both": ({"clusters": "snr", "num_clusters": 2, "weighting": "min_snr"}, "both"),
    }
    known = {m: program.settings.Method(title, options) for m, (options, title) in methods.items()}
    monkeypatch.setattr(program.analysis, "METHODS", known)
    backbone = {"class_name": "DiT", "width": 64, "image_size": 16}
    setting = program.settings.Setting(
        title="Small",
        preset={"model": {"backbone": backbone}, "training": {"learning_rate": 0.002}},
        methods=dict.fromkeys(methods, 3),
        data="emoji",
        learning_rates=(0.001, 0.002),
    )
    monkeypatch.setattr(program.analysis, "SIZES", {"cpu": {"small": setting, "none": setting}})


def some_records():
    """Vanilla by two rates, better curricula, a worse control; other weights; seeds are missing."""
    falling = 1000.0 - 0.5 * STEPS
    means = {"vanilla": 1.0, "snr": 0.9, "late": 0.8, "fixed": 1.2, "weighted": 0.7, "both": 0.6}
    records = [
        record(m, seed, factor * falling + 6.0 * seed)
        for m, factor in means.items()
        for seed in range(1 if m == "late" else 2 if m == "snr" else 3)
    ]
    for each in records:
        each["weighting"] = "min_snr" if each["method"] in ("weighted", "both") else None
        if each["method"] == "late":
            each["stages"] = stages(100)
    return [*records, record(distances=2.0 * falling, rate=0.001)]


@pytest.fixture
def run_report(program, small, monkeypatch, tmp_path):
    """A function: arguments -> its exit code; page and results lie in tmp_path."""
    write_lines(tmp_path / "results.jsonl", some_records())

    def run(*arguments):
        paths = (f"--results={tmp_path}/results.jsonl", f"--page={tmp_path}/evidence.md")
        monkeypatch.setattr(sys, "argv", ["report.py", *paths, *arguments])
        try:
            program.report.main()
        except SystemExit as stopped:
            return int(stopped.code)
        return 0

    return run


def between(page, name):
    return page.split(f"<!-- generated: {name} -->")[1].split(f"<!-- end: {name} -->")[0]


def cells(text):
    """Those of the tables in a text, by the first of their row; of several such rows the first."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in reversed(lines)}


def test_methods_are_grouped_and_compared_by_their_options(program, small, monkeypatch):
    mixed = program.settings.Method("control: mixed", {"curriculum": "none"}, unordered="fixed")
    monkeypatch.setitem(program.analysis.METHODS, "mixed", mixed)
    monkeypatch.setitem(program.analysis.SIZES["cpu"]["small"].methods, "mixed", 3)
    records = some_records()
    (results,) = program.analysis.gather([*records, record("mixed")], "cpu")
    assert results.controls == ["fixed", "mixed"]
    assert results.pairs[-1] == ("fixed", "mixed")
    # Neither names clusters, but those of one are measured.
    for name, measured in (("control", False), ("studied", True)):
        method = program.settings.Method(name, {"patience": 9}, measured_clusters=measured)
        monkeypatch.setitem(program.analysis.METHODS, name, method)
        monkeypatch.setitem(program.analysis.SIZES["cpu"]["small"].methods, name, 3)
    (results,) = program.analysis.gather([*records, record("control"), record("studied")], "cpu")
    assert [pair for pair in results.pairs if "studied" in pair] == [("studied", "vanilla")]
    (results,) = program.analysis.gather(records, "cpu")
    assert results.curricula == ["vanilla", "snr"]
    assert (results.controls, results.weights) == (["fixed"], ["weighted", "both"])
    assert results.grid == {"snr": (2, 9), "late": (2, 99)}
    assert results.pairs == [
        *((method, "vanilla") for method in ("snr", "fixed", "weighted", "both")),
        ("both", "weighted"),
        ("snr", "fixed"),
    ]
    assert results.tuning == {"vanilla": {0.001: 1000.0, 0.002: 500.0}}
    assert set(results.runs["vanilla"]) == {0, 1, 2}
    with pytest.raises(ValueError, match="Received: gone/vanilla"):
        program.analysis.gather([*records, record(setting="gone")], "cpu")
    with pytest.raises(ValueError, match="Received: small/new"):
        program.analysis.gather([*records, record("new")], "cpu")


def test_a_new_page_says_what_the_records_do(run_report, tmp_path):
    assert run_report("--check") == 1  # there is no page
    assert not (tmp_path / "evidence.md").exists()
    assert run_report() == 0
    page = (tmp_path / "evidence.md").read_text(encoding="utf-8")
    summary = between(page, "summary")
    assert "50 % with 2, 75 % with 3, 80 % with 4, 85 % with 5 seeds" in summary
    rows = cells(summary)
    assert rows["method"][4:] == ["steps to it", "minutes", "speed-up", "full range at step"]
    assert rows["vanilla"][:4] == ["3 of 3", "506 [500 to 512]", "0.500 [0.500 to 0.500]", ""]
    assert rows["vanilla"][4:] == ["1,000 [1,000 to 1,000]", "0.167 [0.167 to 0.167]", "", ""]
    assert rows["SNR"][:2] == ["2 of 3", "453 [450 to 456]"]
    assert rows["SNR"][3] == "-9.94 % [-10.0 to -9.88]"
    paces = ["571 [571 to 571]", "0.0952 [0.0952 to 0.0952]", "1.75 [1.75 to 1.75]"]
    assert rows["weighted"][4:] == [*paces, ""]
    assert rows["control: fixed"][4:] == [*["not reached (100 % of resamples)"] * 3, "300"]
    assert "\n| SNR | vanilla | -9.94 % [-10.0 to -9.88] | lower in all 2 | 50 % |\n" in summary
    assert "| control: fixed | vanilla | +19.8 % [+19.5 to +20.0] | higher in all 3 |" in summary
    assert "\n| both | weighted |" in summary
    assert "Not measured yet: the preset's." in summary
    assert "vanilla changed by -16.5 %" in summary
    grid = between(page, "grid")
    assert "| N = 2 | 450, -10.0 %, 300 | 400, -20.0 %, never, ended in stage 1 of 2 |" in grid
    assert "Seeds that all cells have: 0." in grid
    assert "| vanilla | 3 | 0.200 [0.200 to 0.200] |" in between(page, "clusters")
    assert "differ: weighted; both." in between(page, "clusters")
    assert "| Small | vanilla | 0.001: 1,000, 0.002: 500 | 0.002 | 0.002 |" in between(
        page, "tuning"
    )
    assert "at the border" in between(page, "tuning")
    assert "| emoji, 16 x 16 | DiT, width 64, 12,345 parameters | 1,000 | 32 | 1 to 3 |" in page
    assert "- 16 runs: 0.0444 hours of training" in between(page, "time")
    links = re.findall(r"!\[.+\]\((.+)\)", between(page, "figures"))
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("evidence/*")}
    assert drawn == set(links)
    kinds = ("curves", "controls", "weights", "differences", "clusters")
    assert links == [f"evidence/small_{kind}.png" for kind in kinds]


def test_minutes_are_those_of_the_quietest_step_and_a_study_is_named(program, small):
    seconds = {("vanilla", 0): 0.03, ("vanilla", 1): 0.006, ("preset", 0): 0.02}
    records = [record(m, s, seconds_per_step=t, study_steps=0) for (m, s), t in seconds.items()]
    records[-1]["study_steps"] = 5000
    tunes = record(rate=0.001, seconds_per_step=0.001)
    (results,) = program.analysis.gather([*records, tunes], "cpu")
    assert results.seconds_per_step == 0.006
    rows = cells(program.page.summary([results]))
    assert rows["vanilla"][5] == "0.100 [0.100 to 0.100]"
    assert rows["the preset's (found by 5,000 steps of a study)"][5] == "0.100 (1 seed)"


@pytest.mark.parametrize(
    ("kind", "clusters", "steps", "expected"),
    [
        ("paper", 2, [(100, 300), (100, 400)], "350"),
        ("paper", 5, [(1, 2, 3, 4, 5), (1, 2, 3)], "never, ended in stage 3 of 5"),
        ("isolated", 2, [(1, 2, 500), (1, 2, 2500)], "1,500"),
        ("isolated", 2, [(1, 2), (1, 2)], "never, ended in stage 2 of 3"),
        (None, 2, [(100,), (100,)], ""),
    ],
)
def test_the_full_range_begins_with_the_last_stage(program, small, kind, clusters, steps, expected):
    curriculum = kind and {"kind": kind, "num_clusters": clusters}
    fields = [{"stages": stages(*at), "curriculum": curriculum} for at in steps]
    runs = [record("snr", seed, **each) for seed, each in enumerate(fields)]
    results = program.analysis.gather([record(), *runs], "cpu")
    assert cells(program.page.summary(results))["SNR"][-1] == expected


def test_what_diverged_is_named(program, small):
    runs = some_records()
    said = program.page.summary(program.analysis.gather(runs, "cpu"))
    assert "Diverged" not in said
    worst = next(r for r in runs if r["method"] == "both" and r["seed"] == 1)
    for point in worst["curve"]:
        point["loss"] = point["step"] / 1000.0
    said = program.page.summary(program.analysis.gather(runs, "cpu"))
    assert "\nDiverged, but part of all numbers: both, seed 1 (their validation loss" in said


def test_times_and_versions(program):
    records = [record(training_seconds=3600.0, seconds=1.0), record(training_seconds=1800.0)]
    text = program.page.time([*records, record(measuring_seconds=720.0)])
    assert "- 1.50 hours from the first to the last log" in text
    assert "- 0.200 hours measuring the samples; 1 of 3 runs say so." in text
    assert text.count("hours") == 3
    assert "Backend of the training: jax." in text
    expected = "mobilenet_v2 of 96 x 96 pixels, resized by clean (664a61dd)"
    assert f"- Features of the distances: {expected}." in text
    anything = record(extractor={**EXTRACTOR, "image_size": None})
    assert "distances: mobilenet_v2 (664a61dd)." in program.page.time([anything])


def test_losses_without_a_partner_are_not_drawn(program, small, tmp_path):
    lossless = [{**point, "cluster_loss": None} for point in record()["curve"]]
    unpaired = [record(), record("snr", curve=lossless), record("snr", 2)]
    plan = program.figures.plan_figures(program.analysis.gather(unpaired, "cpu")[0])
    assert [name for name, _, _ in plan] == ["small_curves.png", "small_differences.png"]
    (results,) = program.analysis.gather([*unpaired, record("fixed")], "cpu")
    (draw,) = (d for name, _, d in program.figures.plan_figures(results) if "clusters" in name)
    assert draw.args == (results, ["fixed"])
    draw(tmp_path / "clusters.png")


def test_words_between_the_generated_parts_are_kept(run_report, program, monkeypatch, tmp_path):
    monkeypatch.setattr(program.report, "plan_figures", lambda results: [])  # drawn elsewhere
    run_report()
    path, results = tmp_path / "evidence.md", tmp_path / "results.jsonl"
    page = path.read_text(encoding="utf-8").replace("## Results\n", "## Results\n\nBy hand: é.\n")
    page += "\nAt the end."
    path.write_text(page, encoding="utf-8")
    write_lines(results, some_records()[::-1])  # another order, the same records
    assert run_report("--check") == 0
    assert run_report() == 0
    assert path.read_text(encoding="utf-8") == page

    write_lines(results, [*some_records(), record("snr", 2, 3.0 * STEPS)])
    assert run_report("--check") == 1
    assert path.read_text(encoding="utf-8") == page
    assert run_report() == 0
    page = path.read_text(encoding="utf-8")
    assert "| SNR | 3 of 3 |" in page
    assert "## Results\n\nBy hand: é.\n" in page
    assert page.endswith("<!-- end: time -->\n\nAt the end.")
    assert run_report("--check") == 0


def test_a_figure_is_the_same_file_every_time(program, small, tmp_path):
    files = []
    for records in (some_records(), some_records()[::-1]):
        (results,) = program.analysis.gather(records, "cpu")
        draw = {name: draw for name, _, draw in program.figures.plan_figures(results)}
        draw["small_differences.png"](tmp_path / "figure.png")
        files.append((tmp_path / "figure.png").read_bytes())
    assert files[0] == files[1]
    assert b"Software" not in files[0]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("{a}{b}<!-- generated: c -->\n", "must be of the sections a, b. Received: .* c -->"),
        ("{a}", "must have the markers .* Received: none of b"),
        ("{a}{b}{a}", "be in the page once.*Received: <!-- generated: a -->"),
        ("{a}<!-- generated: b -->\n", "b must end. Received: no <!-- end: b -->"),
        ("<!-- generated: a -->\n{b}<!-- end: a -->\n", "next begins. Received: .* b -->"),
        ("<!-- end: a -->\n{b}", "must begin before it ends. Received: <!-- end: a -->"),
    ],
)
def test_markers_must_be_whole(program, page, message):
    pairs = {n: f"<!-- generated: {n} -->\nold\n<!-- end: {n} -->\n" for n in "ab"}
    with pytest.raises(ValueError, match=message):
        program.report.replace_generated(page.format(**pairs), {"a": "new", "b": "new"})


@pytest.mark.parametrize(
    "records",
    [
        [record(rate=0.001)],  # the first run that tunes
        [record("snr")],  # nothing to compare with
        [record(), record("snr", 1)],  # no seed in common
        [record(), record("snr", distances=[float("nan")] * 10)],
    ],
)
def test_a_page_of_few_runs(program, small, records, tmp_path):
    results = program.analysis.gather(records, "cpu")
    texts = program.page.generate(records, results, "evidence")
    page = program.report.replace_generated(program.report.skeleton(), texts)
    assert "Small" in page
    for name, _, draw in program.figures.plan_figures(results[0]):
        draw(tmp_path / name)
        assert (tmp_path / name).is_file()


def test_every_real_table_has_a_page(program):
    for size, settings in program.settings.SIZES.items():
        runs = program.settings.runs(size)
        records = [record(r.method, r.seed, setting=r.setting, rate=r.learning_rate) for r in runs]
        results = program.analysis.gather(records, size)
        assert [r.name for r in results] == list(settings)
        for each in results:
            groups = (*each.curricula, *each.controls, *each.weights)
            assert len(set(groups)) == len(groups)
            assert set(groups) | set(each.grid) == set(each.setting.methods)
            assert each.curricula[0] == each.first
        texts = program.page.generate(records, results, "evidence")
        page = program.report.replace_generated(program.report.skeleton(), texts)
        assert all(f"### {setting.title}" in page for setting in settings.values())
        assert "Not measured yet" not in page

"""Experts: what each is trained on and measured by; images denoised by two models in turn."""

import shutil
import signal

import keras
import numpy as np
import pytest

from keras_cdiff import evaluation, samplers, schedules, study, training
from keras_cdiff.study.denoised_images import through_interval

pytestmark = pytest.mark.one_backend

ALL = (0.0, float("inf"))


@pytest.fixture(scope="module")
def evaluator(extractor_file):
    extractor = evaluation.open_extractor(f"keras:{extractor_file}")
    return evaluation.Evaluator(extractor, ["frechet_distance"], progress=False)


@pytest.fixture(scope="module")
def small(tiny):
    """A function: as `tiny`, with a warm-up of two steps."""

    def make(*arguments, **changes):
        config = tiny(*arguments, **changes)
        config["training"]["warmup_steps"] = 2
        return config

    return make


@pytest.fixture(scope="module")
def make_study(small, evaluator):
    """A function: folder and changes -> a study of two experts of eight steps."""

    def make(folder, config=None, **changes):
        options = {
            "steps": 8,
            "num_experts": 2,
            "num_images": 6,
            "quality_every": 4,
            "loss_every": 2,
        }
        options |= {"evaluator": evaluator, **changes}
        return study.ConvergenceStudy(folder, config or small(steps=4), **options)

    return make


@pytest.fixture(scope="module")
def finished(make_study, tmp_path_factory):
    """A study that has been run from the beginning to the end."""
    made = make_study(tmp_path_factory.mktemp("study"))
    made.train_reference()
    for number in (2, 1):
        made.train_expert(number)
    return made


def test_each_expert_trains_its_own_interval_alone(finished, read_log):
    edges = finished.clusters.edges
    assert edges[[0, -1]].tolist() == [0.0, np.inf]  # quantiles, since the schedule is EDM's
    for number in (1, 2):
        folder = finished.folder / "experts" / f"{number:02d}"
        logged = read_log(folder)
        assert [record["step"] for record in logged] == [2, 4, 6, 8]
        for record in logged:
            low, high = map(float, record["interval"])
            np.testing.assert_allclose([low, high], edges[number - 1 : number + 1], rtol=1e-6)
        assert not list((folder / "samples").glob("*.png"))
    reference = training.Workdir(finished.reference_folder)
    assert reference.weights_step() == 4
    assert reference.config()["curriculum"] is None


def test_curves_begin_before_training(finished):
    first, second = finished.curves()
    assert (first.number, second.number) == (1, 2)
    assert first.interval[1] == second.interval[0]
    for expert in (first, second):
        assert expert.steps == [0, 2, 4, 6, 8]
        assert expert.quality_steps == [0, 4, 8]
        values = [*expert.loss, *expert.loss_error, *expert.quality, expert.floor, expert.seconds]
        assert np.all(np.isfinite(values))
        assert min(*expert.loss_error, *expert.quality, expert.floor, expert.seconds) > 0.0
        assert expert.loss[-1] < expert.loss[0]
    assert set(finished.seconds()) == {"reference", "expert 1", "expert 2"}


def test_losses_are_those_of_the_weights_on_the_interval(finished, npz):
    """The last one, computed once more from the weights on disk."""
    model, _ = training.load_run(finished.folder / "experts" / "02")
    with np.load(npz().removeprefix("npz:")) as file:
        images, labels = file["images"], file["labels"]
    interval = finished.clusters.edges[1:]
    loss = evaluation.ValidationLoss(images / np.float32(127.5) - 1, labels, interval)
    assert loss(model, use_ema=False)["loss"] == pytest.approx(
        finished.curves()[1].loss[-1], rel=1e-5
    )


def test_a_finished_study_is_reported(finished, small, extractor_file, capsys):
    folder, config = finished.folder, small(steps=4)
    page = study.run_study(
        folder,
        config,
        num_experts=2,
        steps=8,
        extractor=f"keras:{extractor_file}",
        quality_images=6,
        quality_every=4,
        num_steps=None,
        loss_every=2,
        num_levels=4,
        num_draws=16,
    )
    assert page == folder / "REPORT.md"
    assert f"wrote {page}" in capsys.readouterr().out
    text = page.read_text()
    for words in ("along EDM", "along LinearBeta", "Convergence of the loss", "Quality"):
        assert words in text
    assert "2 experts, quantile intervals, 8 steps of 4 images each" in text
    assert "min in all, the reference model" in text
    assert "16 images of npz:" in text
    assert {path.name for path in folder.glob("*.csv")} == {
        *("experts.csv", "losses.csv", "qualities.csv", "relative_entropy.csv", "clusters.csv")
    }


def test_a_study_with_experts_missing_has_no_report(small, tmp_path, capsys):
    arguments = {"num_experts": 3, "steps": 8, "extractor": "none"}
    assert study.run_study(tmp_path, small(), experts=["none"], **arguments) is None
    assert (
        "Experts still to be trained before there is a report: 1, 2, 3" in capsys.readouterr().out
    )
    assert not (tmp_path / "REPORT.md").exists()
    for experts in (["4"], ["x"], ["none", "1"], ["0"]):
        with pytest.raises(ValueError, match=rf"in 1\.\.3, or none.*{experts[0]}"):
            study.run_study(tmp_path, small(), experts=experts, **arguments)
    with pytest.raises(ValueError, match=r"among linear, cosine.*cubic"):
        study.run_study(tmp_path, small(), num_experts=0, schedules=["cubic"])
    with pytest.raises(ValueError, match="must have a curriculum"):
        study.run_study(tmp_path, small(curriculum="none"), num_experts=0)


def test_a_report_replaces_that_of_its_own_study_alone(small, tmp_path):
    few = {"num_experts": 0, "num_levels": 4, "num_draws": 16}
    study.run_study(tmp_path, small(), schedules=["cosine"], **few)
    assert (tmp_path / "relative_entropy_Cosine.png").exists()
    (tmp_path / "notes.md").write_text("mine")
    study.run_study(tmp_path, small(), schedules=[], **few)
    assert not (tmp_path / "relative_entropy_Cosine.png").exists()
    assert (tmp_path / "relative_entropy_EDM.png").exists()
    assert (tmp_path / "notes.md").read_text() == "mine"
    with pytest.raises(ValueError, match=r"(?s)another study.*seed was 0 and is now 1"):
        study.run_study(tmp_path, small(seed=1), **few)


def test_an_interrupted_expert_goes_on_as_if_nothing_had_happened(
    finished, make_study, signal_at, tmp_path
):
    other = make_study(tmp_path, reference=finished.reference_folder)
    with signal_at(3, signal.SIGTERM), pytest.raises(training.Interrupted):
        other.train_expert(1)
    assert other.missing() == [1, 2]
    with pytest.raises(ValueError, match=r"experts \[1, 2\] missing"):
        other.curves()
    again = make_study(tmp_path, reference=finished.reference_folder)
    again.train_reference()  # one was given: nothing to do
    again.train_expert(1)
    weights = training.Workdir(again.folder / "experts" / "01").weights_file("raw")
    written = weights.stat().st_mtime_ns
    again.train_expert(1)  # done already
    assert weights.stat().st_mtime_ns == written
    again.train_expert(2)
    for resumed, whole in zip(again.curves(), finished.curves(), strict=True):
        for name in ("steps", "loss", "loss_error", "quality_steps", "quality", "floor"):
            np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name), name)
    assert "reference" not in again.seconds()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 3}, "another study.*curriculum"),
        ({"num_images": 5}, "another study.*study.quality.num_images was 6 and is now 5"),
        ({"evaluator": None}, "another study.*quality"),
        ({"loss_every": 4}, "another study.*study.loss_every was 2 and is now 4"),
        ({"steps": 9}, "another study.*training.steps was 8 and is now 9"),
    ],
)
def test_a_folder_keeps_to_one_study(finished, make_study, changes, message):
    other = make_study(finished.folder, **changes)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        other.train_expert(1)


def test_a_reference_of_other_settings_is_refused(finished, make_study, small, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)another study.*steps was 4 and is now 5"):
        make_study(finished.folder, small(steps=5)).train_reference()
    other = make_study(tmp_path, reference=finished.folder / "nothing")
    with pytest.raises(ValueError, match=r"must be a finished run.*nothing"):
        other.train_expert(1)
    other = make_study(tmp_path, small(num_classes=0, steps=4), reference=finished.reference_folder)
    with pytest.raises(ValueError, match=r"give another run.*num_classes 3, not 0"):
        other.train_expert(1)
    assert not (tmp_path / "experts").exists()


def test_experts_are_judged_with_one_reference(finished, make_study, tmp_path):
    """Another one is noticed by its weights, wherever they lie."""
    shutil.copytree(finished.reference_folder, tmp_path / "copy")
    assert make_study(finished.folder, reference=tmp_path / "copy").missing() == []
    with open(training.Workdir(tmp_path / "copy").weights_file("ema"), "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"(?s)another study.*study.quality.reference was"):
        make_study(finished.folder, reference=tmp_path / "copy").train_expert(1)


def test_an_expert_that_was_trained_but_not_judged_is_judged(finished, make_study, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "study")
    result = tmp_path / "study" / "experts" / "01" / "result.json"
    result.unlink()
    with open(tmp_path / "study" / "times.jsonl", "a") as file:
        file.write('{"part": "exp')  # killed
    with pytest.raises(ValueError, match=r"(?s)another study.*steps was 8 and is now 16"):
        make_study(tmp_path / "study", steps=16, quality_every=4).train_expert(1)
    assert not result.exists()
    again = make_study(tmp_path / "study")
    assert again.missing() == [1]
    again.train_expert(1)
    assert [e.floor for e in again.curves()] == [e.floor for e in finished.curves()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_every": 0}, "loss_every=0"),
        ({"num_images": 1}, "num_images=1"),
        ({"loss_images": True}, "loss_images=True"),
        ({"num_experts": 0}, "num_clusters=0"),
        ({"steps": 2}, "beyond the warm-up.*of 2 steps.*steps=2"),
    ],
)
def test_bad_arguments(make_study, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_study(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"numbered 1\.\.2.*number=3"):
        make_study(tmp_path).train_expert(3)


def test_losses_alone_need_no_reference(make_study, tmp_path):
    alone = make_study(tmp_path, evaluator=None, num_experts=1)
    alone.train_expert(1)
    (expert,) = alone.curves()
    assert (expert.quality, expert.floor) == ([], None)
    assert not alone.reference_folder.exists()


def test_the_papers_intervals():
    config = training.resolve("dit_b_2_imagenet256")
    assert study.default_intervals(config, 4).edges.tolist() == [0, 250, 500, 750, 1000]
    flow = study.default_intervals(training.resolve("sit_emoji16"), 4)
    assert flow.edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    edges = study.default_intervals(training.resolve("edm_emoji16"), 2).edges
    np.testing.assert_allclose(edges, [0.0, np.exp(-0.4), np.inf])


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("schedule", "interval", "levels"),
    [
        (schedules.LinearBeta(100), (40, 60), [59, 50, 40, 25, 0]),
        (schedules.LinearBeta(100), (0, 30), [29, 25, 0]),
        (schedules.RectifiedFlow(), (0.3, 0.6), [0.6, 0.5, 0.3, 0.25]),
        (schedules.RectifiedFlow(), (0.75, 1.0), [1.0, 0.75, 0.5, 0.25]),
        (schedules.EDM(), (10.0, np.inf), [80.0, 10.0, 5.0, 1.0]),
        (schedules.EDM(), (0.0, 0.5), [0.5, 0.002]),
    ],
)
def test_a_sampler_visits_both_ends_of_the_interval(schedule, interval, levels):
    spacing = {"EDM": [80.0, 5.0, 1.0, 0.002]}.get(type(schedule).__name__, "linspace")
    if isinstance(schedule, schedules.LinearBeta):
        spacing = [99.0, 75.0, 50.0, 25.0, 0.0]
    whole = samplers.DDIM(4, spacing=spacing)
    found = through_interval(whole, schedule, interval).levels(schedule)
    expected = [*levels, 0.002] if levels[-1] == 1.0 else levels
    np.testing.assert_allclose(found, expected)


def test_denoised_images_are_those_of_the_two_models_in_turn(make_model):
    """With models whose estimates are constants, what comes out is known."""
    images = np.linspace(-1, 1, 3 * 192).reshape(3, 8, 8, 3).astype("float32")
    expert, reference = make_model(seed=1, num_classes=0), make_model(seed=2, num_classes=0)
    sampler = samplers.DDIM(4, spacing=[80.0, 5.0, 1.0, 0.002])
    whole = study.DenoisedImages(expert, reference, images, None, ALL, sampler, batch_size=2)
    # All levels are the expert's: as `sample` denoises the same noisy images.
    noise = np.stack(
        [
            np.random.Generator(np.random.Philox(key=i)).standard_normal((8, 8, 3), dtype="float32")
            for i in range(3)
        ]
    )
    x = keras.ops.convert_to_tensor(images + np.float32(80.0) * noise)

    def denoise(x, level, model=expert):
        return model.estimate(x, np.full(3, level, "float32"), use_ema=False)

    for step in sampler.trajectory(denoise, x, expert.schedule):
        expected, _ = step
    found = np.concatenate(list(whole.batches(0, 64)))
    expected = keras.ops.convert_to_numpy(expected)
    np.testing.assert_allclose(found / 127.5 - 1, np.clip(expected, -1, 1), atol=0.5 / 127.5 + 1e-4)

    # Little noise below the expert's interval: the reference decides, not the expert.
    split = study.DenoisedImages(expert, reference, images, None, (1.0, 80.0), sampler)
    x = keras.ops.convert_to_tensor(images + np.float32(80.0) * noise)

    def in_turn(x, level):
        model, use_ema = (expert, False) if level >= 1.0 else (reference, True)
        return model.estimate(x, np.full(3, level, "float32"), use_ema=use_ema)

    for step in split.sampler.trajectory(in_turn, x, expert.schedule):
        expected, _ = step
    found = np.concatenate(list(split.batches(0, 64)))
    expected = keras.ops.convert_to_numpy(expected)
    np.testing.assert_allclose(found / 127.5 - 1, np.clip(expected, -1, 1), atol=0.5 / 127.5 + 1e-4)
    assert whole.digest() != split.digest()
    assert len(whole) == whole.describe()["count"] == 3

"""CurriculumCallback: stages as pacing says, one assignment a stage, state that survives."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import (
    CurriculumCallback,
    DiffusionModel,
    objectives,
    parameterizations,
    schedules,
)
from keras_cdiff.curriculum import (
    Clusters,
    FixedPacing,
    PatiencePacing,
    quantile_clusters,
    snr_clusters,
    uniform_clusters,
)

BACKEND = keras.backend.backend()


class Recorder(keras.callbacks.Callback):
    """Keeps the loss of each batch and the interval in force after it."""

    def __init__(self, curriculum):
        super().__init__()
        self.curriculum = curriculum
        self.losses, self.stages, self.intervals = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["batch_loss"])
        self.stages.append(self.curriculum.stage)
        interval = ops.convert_to_numpy(self.model.noise_interval)
        self.intervals.append(tuple(interval.tolist()))


def train(model, batch, callbacks, epochs, batch_size=8):
    return model.fit(
        *batch, batch_size=batch_size, epochs=epochs, callbacks=callbacks, verbose=0, shuffle=False
    )


def test_stages_follow_the_pacing_exactly(make_model, batch, quick):
    model = make_model()
    model.compile(keras.optimizers.SGD(1e-3), **quick)
    clusters = quantile_clusters(model.objective, 4)
    curriculum = CurriculumCallback(clusters, PatiencePacing(2), verbose=0)
    recorder = Recorder(curriculum)
    train(model, batch, [curriculum, recorder], epochs=15)
    # Replays the rule on the recorded losses.
    pacing, stage = PatiencePacing(2), 1
    for loss, seen, interval in zip(
        recorder.losses, recorder.stages, recorder.intervals, strict=True
    ):
        if stage < 4 and pacing.update(loss):
            stage += 1
        assert seen == stage
        np.testing.assert_allclose(interval, clusters.stage_interval(stage), rtol=1e-6)
    assert stage > 1
    assert [record["stage"] for record in curriculum.history] == list(range(1, stage + 1))


def test_a_stage_change_neither_recompiles_nor_resets(make_model, batch, quick):
    model = make_model()
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), **quick)
    curriculum = CurriculumCallback(
        quantile_clusters(model.objective, 4), FixedPacing(2), verbose=0
    )
    train(model, batch, [curriculum], epochs=1)
    after_one_epoch = model.backbone.num_calls
    assert curriculum.stage == 2
    momenta = [ops.convert_to_numpy(v) for v in model.optimizer.momentums]
    averages = [ops.convert_to_numpy(w) for w in model.ema_backbone.weights]
    model.optimizer.learning_rate = 0.0
    train(model, batch, [curriculum], epochs=3)
    assert curriculum.stage == 4
    steps = 6 if BACKEND == "torch" else 0  # eager PyTorch runs the Python code at every step
    assert model.backbone.num_calls == after_one_epoch + steps
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 8
    for before, momentum in zip(momenta, model.optimizer.momentums, strict=True):
        assert np.any(before)
        np.testing.assert_allclose(ops.convert_to_numpy(momentum), 0.9**6 * before, rtol=1e-5)
    for before, average in zip(averages, model.ema_backbone.weights, strict=True):
        assert np.abs(before - ops.convert_to_numpy(average)).max() < 1e-2


REGIMES = {
    ("easy_to_hard", True): [(75, 100), (50, 100), (25, 100), (0, 100)],
    ("hard_to_easy", True): [(0, 25), (0, 50), (0, 75), (0, 100)],
    ("easy_to_hard", False): [(75, 100), (50, 75), (25, 50), (0, 25), (0, 100)],
    ("hard_to_easy", False): [(0, 25), (25, 50), (50, 75), (75, 100), (0, 100)],
}


def test_every_regime_ends_with_the_whole_range(make_model, batch, quick):
    model = make_model("ddpm")
    model.compile(keras.optimizers.SGD(0.0), **quick)
    clusters = uniform_clusters(model.schedule, 4)
    for (order, cumulative), intervals in REGIMES.items():
        model.curriculum_state.assign([0.0] * 4)
        curriculum = CurriculumCallback(clusters, FixedPacing(1), order, cumulative, verbose=0)
        recorder = Recorder(curriculum)
        train(model, batch, [curriculum, recorder], epochs=4, batch_size=16)
        assert [tuple(record["interval"]) for record in curriculum.history] == intervals
        # The first is in force until the first step is over.
        assert recorder.intervals[: len(intervals) - 1] == intervals[1:]
        assert recorder.intervals[-1] == (0.0, 100.0)
        assert curriculum.stage == curriculum.num_stages


def test_state_survives_saving_in_the_middle_of_a_stage(make_model, batch, quick, tmp_path):
    """Another callback saves mid-epoch, before the curriculum's own end of epoch."""

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(ops.convert_to_numpy(self.model.iteration)) == 5:
                self.model.save(tmp_path / "model.keras")

    def run(model, callbacks, epochs):
        curriculum = CurriculumCallback(
            quantile_clusters(model.objective, 5), PatiencePacing(2), verbose=0
        )
        train(model, batch, [*callbacks, curriculum], epochs, batch_size=2)
        return curriculum

    # Two halves equal the whole.
    weights = []
    for halves in ([4], [2, 2]):
        keras.utils.set_random_seed(3)
        model = make_model()
        model.compile(keras.optimizers.SGD(1e-2), **quick)
        for epochs in halves:
            # Order matters to a naive curriculum: Save comes first, so a step is not yet counted.
            curriculum = run(model, [Save()], epochs)
        weights.append([ops.convert_to_numpy(w) for w in model.weights])
    assert curriculum.stage > 1
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)

    copy = keras.saving.load_model(tmp_path / "model.keras")
    saved = ops.convert_to_numpy(copy.curriculum_state)
    assert saved[0] >= 1
    resumed = CurriculumCallback(
        quantile_clusters(model.objective, 5), PatiencePacing(2), verbose=0
    )
    resumed.set_model(copy)
    resumed.on_train_begin()
    assert resumed.stage == saved[0]
    np.testing.assert_array_equal(np.float32(resumed.pacing.state), saved[1:])


def test_checks_every_k_iterations(make_model, batch, quick):
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), **quick)
    clusters = quantile_clusters(model.objective, 3)
    curriculum = CurriculumCallback(clusters, FixedPacing(4), check_every=3, verbose=0)
    train(model, batch, [curriculum], epochs=2, batch_size=1)
    # Four iterations are over when the sixth is looked at.
    assert [record["iteration"] for record in curriculum.history] == [0, 6, 12]


def test_the_console_says_stage_interval_and_reason(make_model, batch, quick, capsys):
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), **quick)
    curriculum = CurriculumCallback([0.0, 0.5, np.inf], PatiencePacing(1))
    train(model, batch, [curriculum], epochs=4)
    printed = capsys.readouterr().out
    assert "stage 1/2 at iteration 0: sigma in [0.5, inf) (training began)" in printed
    assert "sigma in [0, inf) (stage 1 ended: no improvement on" in printed


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: CurriculumCallback([0.0, 1.0], order="random"), "order='random'"),
        (lambda: CurriculumCallback([0.0, 1.0], check_every=0), "check_every=0"),
        (lambda: CurriculumCallback([1.0, 1.0]), "edges"),
        (lambda: CurriculumCallback([0.0, 1.0], PatiencePacing(0)), "patience=0"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make()


def test_clusters_must_fit_model_and_saved_stage(make_model, batch, quick):
    model = make_model("ddpm")
    model.compile(keras.optimizers.SGD(0.0), **quick)
    with pytest.raises(ValueError, match="edges from 0 to 200"):
        train(model, batch, [CurriculumCallback([0, 100, 200], verbose=0)], epochs=1)
    curriculum = CurriculumCallback(Clusters([0, 30, 60, 100]), FixedPacing(1), verbose=0)
    train(model, batch, [curriculum], epochs=2)
    with pytest.raises(ValueError, match="stage=3"):
        train(model, batch, [CurriculumCallback([0, 50, 100], verbose=0)], epochs=1)


PROCESSES = {
    "edm": (schedules.EDM(), parameterizations.EDMPreconditioning(), objectives.LogNormalSigma()),
    "uniform ln sigma": (
        schedules.EDM(0.02, 100.0),
        parameterizations.VEPreconditioning(),
        objectives.LogUniformSigma(),
    ),
    "ve": (
        schedules.VE(),
        parameterizations.VEPreconditioning(),
        objectives.LogUniformVariance(),
    ),
    "vp": (schedules.VP(), parameterizations.VPPreconditioning(), objectives.UniformTime(1e-5)),
    "flow": (
        schedules.RectifiedFlow(),
        parameterizations.Velocity(),
        objectives.LogitNormalTime(),
    ),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_clusters_of_every_continuous_process_cover_what_is_drawn(make_model, process):
    model = DiffusionModel(make_model().backbone, *PROCESSES[process], ema=None)
    partitions = [quantile_clusters(model.objective, n) for n in (5, 20)]
    partitions += [snr_clusters(model.schedule, n) for n in (5, 20)]
    for clusters in partitions:
        curriculum = CurriculumCallback(clusters, verbose=0)
        curriculum.set_model(model)
        assert curriculum.clusters.full_interval == model.objective.support
        assert curriculum.clusters.num_clusters == clusters.num_clusters
        curriculum.on_train_begin()
        low, high = ops.convert_to_numpy(model.noise_interval)
        assert low == pytest.approx(clusters.edges[-2])
        assert high == np.float32(model.objective.support[1])
        model.curriculum_state.assign(np.zeros(4, "float32"))


def test_a_flow_trains_under_the_curriculum(make_model, batch, quick):
    model = make_model("flow")
    model.compile(keras.optimizers.SGD(0.3), **quick)
    curriculum = CurriculumCallback(uniform_clusters(model.schedule, 3), FixedPacing(4), verbose=0)
    recorder = Recorder(curriculum)
    train(model, batch, [curriculum, recorder], epochs=20)
    assert recorder.intervals[0] == pytest.approx((2 / 3, 1.0))
    assert recorder.intervals[-1] == (0.0, 1.0)
    # A blank network's loss is that of the noise and the image together.
    blank = 1.0 + np.mean(np.square(batch[0]))
    assert np.mean(recorder.losses[-8:]) < 0.9 * blank

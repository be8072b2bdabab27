import dataclasses
import json
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, objectives, parameterizations, schedules
from keras_cdiff.data import to_uint8
from keras_cdiff.ema import FixedDecay
from keras_cdiff.evaluation.callbacks import EvaluationCallback, ValidationLossCallback
from keras_cdiff.evaluation.validation_loss import ValidationLoss
from keras_cdiff.samplers import Guidance, Heun, sample
from keras_cdiff.training import StopAt, TensorBoardWriter

EDGES = [0.0, 0.3, math.inf]


@keras.saving.register_keras_serializable("evaluation_callback_tests")
class DropoutNetwork(keras.Model):
    """A small network that compiles fast and has randomness of its own in training."""

    image_size, channels, out_channels, num_classes = 4, 3, 3, 2

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)
        self.mix = keras.layers.Dense(3)
        self.mix.build((None, 3))
        self.embedding = keras.layers.Embedding(3, 3)
        self.embedding.build()
        self.built = True

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        if training:
            x = keras.random.dropout(x, 0.5, seed=self.seed_generator)
        return self.mix(x) + self.embedding(label)[:, None, None, :]

    def get_config(self):
        return {}


@dataclasses.dataclass
class FakeSamples:
    model: object
    num_images: int
    options: dict


@dataclasses.dataclass
class FakeResult:
    metrics: dict
    record: dict


class FakeEvaluator:
    """Tells a made-up distance, and remembers what it was asked."""

    def __init__(self, distance=3.0):
        self.distance, self.calls = distance, []

    def check(self, generated, reference):
        assert isinstance(generated, FakeSamples)

    def evaluate(self, generated, reference):
        self.calls.append((generated, reference))
        metrics = {"frechet_distance": np.float64(self.distance), "recall": 0.5}
        return FakeResult(metrics, {"metrics": metrics, "count": 10, "edges": (0, math.inf)})


class Brightness:
    """Evaluates samples by their mean value."""

    def check(self, generated, reference):
        pass

    def evaluate(self, generated, reference):
        mean = np.mean(np.concatenate(list(generated.batches(0, len(generated)))))
        return FakeResult({"brightness": mean}, {"brightness": float(mean)})


def fake_samples(model, num_images, **options):
    return FakeSamples(model, num_images, options)


class CountingCallback(EvaluationCallback):
    """Evaluates nothing but tells when it would have."""

    def __init__(self, every):
        super().__init__(FakeEvaluator(), "reference", every, generate=fake_samples, verbose=0)


def strict(text):
    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def model(make_model, quick):
    model = make_model()
    model.compile(**quick)
    return model


def test_numbers_reach_logs_file_and_tensorboard_and_training_goes_on_as_without(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(-1, 1, (16, 4, 4, 3)), rng.integers(0, 2, 16)
    parts = schedules.EDM(), parameterizations.EDMPreconditioning(), objectives.LogNormalSigma()
    model = DiffusionModel(DropoutNetwork(), *parts, ema=FixedDecay(0.9))
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    start = model.get_weights()

    def fit(*callbacks):
        model.set_weights(start)
        options = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}
        history = model.fit(images, labels, callbacks=[*callbacks, StopAt(10)], **options).history
        return history, model.get_weights()

    validation_loss = ValidationLoss(images[:2], labels[:2], EDGES, levels_per_cluster=1)
    writer = TensorBoardWriter(tmp_path / "tensorboard")
    options = {"path": tmp_path / "new" / "losses.jsonl", "tensorboard": writer}
    callback = ValidationLossCallback(validation_loss, every=6, **options)
    samples = {"num_samples": 2, "sampler": Heun(1), "label": 1, "verbose": 0}
    brightness = EvaluationCallback(Brightness(), None, every=6, **samples)

    alone, end_alone = fit()
    history, end = fit(callback, brightness)
    writer.close()
    assert history["loss"] == alone["loss"]
    for weight, same in zip(end, end_alone, strict=True):
        np.testing.assert_array_equal(weight, same)

    lines = (tmp_path / "new" / "losses.jsonl").read_text().splitlines()
    records = [strict(line) for line in lines]
    # Four steps an epoch: due at 6, done at the end of the epoch at 8; and once more at the end.
    assert [record["step"] for record in records] == [8, 10]
    assert history["validation_loss"] == [record["loss"] for record in records]
    assert len(history["loss"]) == 3
    assert records == callback.records
    assert records[0]["cluster_edges"] == [0.0, 0.3, "inf"]
    assert records[0]["use_ema"]
    # The last are those of the averaged weights as they are now.
    now = validation_loss(model)
    assert records[1]["cluster_loss"] == now["cluster_loss"]
    assert now["loss"] != records[0]["loss"]
    drawn = sample(model, 2, Heun(1), label=1, progress=False)
    assert history["brightness"][1] == pytest.approx(np.mean(to_uint8(drawn)), abs=0.01)
    assert history["brightness"][0] != history["brightness"][1]
    scalars = read_scalars(tmp_path)
    assert [step for step, _ in scalars["validation_loss"]] == [8, 10]
    for number, loss in enumerate(now["cluster_loss"], start=1):
        step, value = scalars[f"validation_cluster_loss/{number:02d}"][-1]
        assert (step, value) == (10, pytest.approx(loss, rel=1e-6))
    assert "Evaluation at step 10: validation_loss " in capsys.readouterr().out


def read_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def run(callbacks, model, epochs, stop_after=None):
    """Calls the callbacks as `fit` does in epochs of 4 steps; returns the logs of each epoch."""
    all_callbacks = keras.callbacks.CallbackList(
        callbacks, add_history=True, model=model, epochs=epochs
    )
    model.stop_training = False
    all_callbacks.on_train_begin()
    for epoch in range(epochs):
        all_callbacks.on_epoch_begin(epoch)
        model.iteration.assign(model.iteration + 4)
        if epoch + 1 == stop_after:
            model.stop_training = True
        all_callbacks.on_epoch_end(epoch, {"loss": 1.0})
        if model.stop_training:
            break
    all_callbacks.on_train_end({"loss": 1.0})
    return model.history.history


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (1, [4, 8, 12, 16, 20]),
        (4, [4, 8, 12, 16, 20]),
        (8, [8, 16, 20]),
        (10, [12, 20]),
        (11, [12, 20]),
        (20, [20]),
        (1000, [20]),
    ],
)
def test_evaluations_are_due_every_so_many_steps_and_at_the_end(model, every, steps):
    callback = CountingCallback(every)
    history = run([callback], model, epochs=5)
    assert [record["step"] for record in callback.records] == steps
    assert len(history["frechet_distance"]) == len(steps)
    run([callback], model, epochs=1)  # training that goes on has an end of its own
    assert [record["step"] for record in callback.records] == [*steps, 24]
    run([callback], model, epochs=0)
    assert len(callback.records) == len(steps) + 1


@pytest.mark.backend_free
def test_training_that_is_stopped_is_evaluated_once_more(model):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    before, after = CountingCallback(100), CountingCallback(100)
    history = run([before], model, epochs=9, stop_after=2)
    assert [record["step"] for record in before.records] == [8]
    assert history["frechet_distance"] == [3.0]
    history = run([after, Stop()], model, epochs=9)  # too late for the history
    assert [record["step"] for record in after.records] == [12]
    assert "frechet_distance" not in history


@pytest.mark.backend_free
def test_samples_and_reference_reach_the_evaluator(tmp_path, model, capsys):
    evaluator, sampler = FakeEvaluator(math.inf), Heun(2)
    callback = EvaluationCallback(
        evaluator,
        "reference",
        every=8,
        num_samples=10,
        sampler=sampler,
        label=1,
        guidance=2.0,
        use_ema=False,
        seed=5,
        batch_size=3,
        generate=fake_samples,
        path=tmp_path / "evaluations.jsonl",
        tensorboard=(writer := TensorBoardWriter(tmp_path / "tensorboard")),
        verbose=0,
    )
    history = run([callback], model, epochs=4)
    writer.close()
    assert [reference for _, reference in evaluator.calls] == ["reference"] * 2
    generated = evaluator.calls[0][0]
    assert (generated.model, generated.num_images) == (model, 10)
    options = {"sampler": sampler, "label": 1, "use_ema": False, "seed": 5, "batch_size": 3}
    guidance = generated.options.pop("guidance")
    assert generated.options == options
    assert isinstance(guidance, Guidance)
    assert guidance.scale == 2.0
    assert history["frechet_distance"] == [math.inf, math.inf]
    assert history["recall"] == [0.5, 0.5]
    records = [strict(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    metrics = {"frechet_distance": "inf", "recall": 0.5}
    expected = {"metrics": metrics, "count": 10, "edges": [0, "inf"]}
    assert records == [{"step": 8, **expected}, {"step": 16, **expected}]
    assert read_scalars(tmp_path)["evaluation/recall"] == [(8, 0.5), (16, 0.5)]
    assert capsys.readouterr().out == ""


@pytest.mark.backend_free
def test_a_callback_after_it_can_watch_a_distance(tmp_path, model):
    evaluator = FakeEvaluator()

    class Worse(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            evaluator.distance = abs(epoch - 1.0)

    path = str(tmp_path / "best.weights.h5")
    best = keras.callbacks.ModelCheckpoint(
        path, "frechet_distance", save_best_only=True, save_weights_only=True, mode="min"
    )
    callback = EvaluationCallback(evaluator, None, 1, generate=fake_samples, verbose=0)
    run([Worse(), callback, best], model, epochs=4)
    assert best.best == 0.0
    model.load_weights(path)
    assert int(ops.convert_to_numpy(model.iteration)) == 8


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 2.5}, r"every=2\.5"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"guidance": -1.0}, "-1"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        EvaluationCallback(FakeEvaluator(), None, **{"every": 1, **options})


@pytest.mark.backend_free
def test_what_does_not_fit_the_model_is_said_before_the_first_step(model):
    callback = ValidationLossCallback(ValidationLoss(np.zeros((2, 4, 4, 2))), every=1)
    with pytest.raises(ValueError, match=r"the model's shape, \(8, 8, 3\)"):
        run([callback], model, epochs=1)
    assert int(ops.convert_to_numpy(model.iteration)) == 0

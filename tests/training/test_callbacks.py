import json
import math

import keras
import numpy as np
import pytest
from PIL import Image

from keras_cdiff.samplers import DDIM
from keras_cdiff.training import RunLog, SampleGrid, StopAt, TensorBoardWriter
from keras_cdiff.training.generation import class_labels


def end_an_epoch(callback, model, logs, batches=2):
    callback.set_model(model)
    callback.on_epoch_begin(0)
    for batch in range(batches):
        callback.on_train_batch_end(batch)
    callback.on_epoch_end(0, logs)


def strict(text):
    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.backend_free
def test_the_log_stays_json_when_the_loss_is_not_finite(
    tmp_path, make_model, quick, capsys, read_events
):
    model = make_model()
    model.compile(**quick)
    model.noise_interval.assign([0.5, math.inf])
    path = tmp_path / "log.jsonl"
    writer = TensorBoardWriter(tmp_path / "tensorboard")
    for loss in (math.nan, math.inf):
        log = RunLog(10, 4, path, writer)
        end_an_epoch(log, model, {"loss": loss, "batch_loss": 1.0})
    writer.close()

    records = [strict(line) for line in path.read_text().splitlines()]
    assert [record["loss"] for record in records] == [None, "inf"]
    assert [(record["step"], record["images"]) for record in records] == [(0, 0)] * 2
    assert records[0]["interval"] == [0.5, "inf"]
    assert records[0]["cluster_edges"][-1] == "inf"
    assert records[0]["cluster_loss"] == [None] * 10
    assert "loss nan" in capsys.readouterr().out
    losses = [event.value for event in read_events(tmp_path).Scalars("loss")]
    assert math.isnan(losses[0])
    assert losses[1] == math.inf


@pytest.mark.backend_free
def test_the_log_is_silent_and_writes_nothing_if_so_wished(tmp_path, make_model, quick, capsys):
    model = make_model()
    model.compile(**quick)
    end_an_epoch(RunLog(10, 4, verbose=0), model, {"loss": 1.0, "batch_loss": 1.0})
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_grids_come_when_due_and_training_stops_at_the_exact_step(
    tmp_path, make_model, batch, quick, monkeypatch
):
    monkeypatch.setattr(SampleGrid, "act", lambda grid, step, logs: (tmp_path / str(step)).touch())
    model = make_model()
    model.compile(**quick)
    images, labels = batch  # 4 steps an epoch
    for steps, drawn in ((18, [8, 16, 18]), (21, [8, 16, 18, 21])):
        callbacks = [StopAt(steps), SampleGrid(tmp_path, every=8)]
        model.fit(images, labels, batch_size=4, epochs=9, verbose=0, callbacks=callbacks)
        assert int(keras.ops.convert_to_numpy(model.iteration)) == steps
        assert sorted(int(path.name) for path in tmp_path.iterdir()) == drawn


@pytest.mark.backend_free
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_a_grid_shows_grey_rgb_and_the_first_channels_of_latents(
    tmp_path, make_model, channels, mode
):
    model = make_model("ddpm", channels=channels, num_classes=0)
    grid = SampleGrid(tmp_path, every=1, sampler=DDIM(1), num_samples=10)
    grid.set_model(model)
    grid.act(0, None)
    with Image.open(tmp_path / "step_000000.png") as image:
        assert image.mode == mode
        assert image.size == (8 * 66 + 2, 2 * 66 + 2)


@pytest.mark.backend_free
def test_a_grid_does_not_end_a_run_that_diverged(tmp_path, make_model):
    model = make_model()
    for weight in model.ema_backbone.weights:
        weight.assign(np.full(weight.shape, np.nan))
    grid = SampleGrid(tmp_path, every=1, sampler=DDIM(1), num_samples=1)
    grid.set_model(model)
    grid.act(0, None)
    with Image.open(tmp_path / "step_000000.png") as image:
        assert image.getpixel((5, 5)) == (128, 128, 128)


@pytest.mark.backend_free
def test_samples_show_the_classes_in_turn():
    assert class_labels(3, 7) == [0, 1, 2, 0, 1, 2, 0]
    assert class_labels(0, 7) is None

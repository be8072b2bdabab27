"""Bad requests are refused by the exported graphs, with a message."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_cdiff import export_sampler, samplers

pytestmark = pytest.mark.backend_free

GOOD = {
    "seeds": np.array([1, 2], "int64"),
    "noise": np.zeros((2, 8, 8, 3), "float32"),
    "x": np.zeros((2, 8, 8, 3), "float32"),
    "level": np.array([5.0, 50.0], "float32"),
    "label": np.array([0, 3], "int32"),
    "guidance": np.array(2.0, "float32"),
}
TASKS = {"sample": ["seeds"], "sample_from_noise": ["noise"], "denoise": ["x", "level"]}


@pytest.fixture(scope="module")
def signatures(served):
    return tf.saved_model.load(str(served)).signatures


def ask(signatures, task, **changes):
    """The answer to a good request with some inputs replaced, all of them tensors already."""
    names = [*TASKS[task], "label", "guidance"]
    inputs = {name: np.asarray(changes.get(name, GOOD[name])) for name in names}
    inputs = {name: tf.constant(v.astype(GOOD[name].dtype)) for name, v in inputs.items()}
    (answer,) = signatures[task](**inputs).values()
    return answer.numpy()


@pytest.mark.parametrize("task", TASKS)
def test_good_requests_are_answered(signatures, task):
    assert ask(signatures, task).shape == (2, 8, 8, 3)


IMAGE = r"is not compatible with expected shape \[\?,8,8,3\]"
LIST = r"is not compatible with expected shape \[\?\]"
SCALAR = r"is not compatible with expected shape \[\]"


@pytest.mark.parametrize(
    ("task", "name", "shape", "message"),
    [
        ("sample", "seeds", (), rf"received_seeds \[\] {LIST}"),
        ("sample", "seeds", (2, 1), rf"received_seeds \[2,1\] {LIST}"),
        ("sample", "label", (2, 1), rf"received_label \[2,1\] {LIST}"),
        ("sample", "label", (), rf"received_label \[\] {LIST}"),
        ("sample", "guidance", (2,), rf"received_guidance \[2\] {SCALAR}"),
        ("sample_from_noise", "noise", (2, 8, 8), rf"received_noise \[2,8,8\] {IMAGE}"),
        ("sample_from_noise", "noise", (2, 8, 8, 1), rf"received_noise \[2,8,8,1\] {IMAGE}"),
        ("sample_from_noise", "noise", (2, 16, 16, 3), rf"received_noise \[2,16,16,3\] {IMAGE}"),
        ("sample_from_noise", "noise", (2, 5, 8, 8, 3), rf"received_noise \[2,5,8,8,3\] {IMAGE}"),
        ("sample_from_noise", "label", (3,), "label must have one entry for each of noise"),
        ("denoise", "x", (2, 4, 8, 3), rf"received_x \[2,4,8,3\] {IMAGE}"),
        ("denoise", "x", (2, 8, 8, 1), rf"received_x \[2,8,8,1\] {IMAGE}"),
        ("denoise", "level", (), rf"received_level \[\] {LIST}"),
        ("denoise", "level", (1,), "level must have one entry for each of x"),
        ("denoise", "guidance", (1,), rf"received_guidance \[1\] {SCALAR}"),
        ("sample", "seeds", (0,), "seeds must have at least one entry"),
    ],
)
def test_other_shapes_are_refused(signatures, task, name, shape, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ask(signatures, task, **{name: np.ones(shape)})


@pytest.mark.parametrize(
    ("task", "name", "value", "message"),
    [
        ("sample", "seeds", [0, -1], r"seeds must be finite and at least 0. Received:.*\[0 -1\]"),
        ("sample", "label", [0, 4], r"label must be in \[0, 3\] \(3 is the null label\)"),
        ("sample", "label", [-1, 0], r"label must be in \[0, 3\]"),
        ("sample", "guidance", -0.5, r"guidance must be finite and at least 0 \(1 is none\)"),
        ("sample", "guidance", np.nan, "guidance must be finite"),
        ("sample", "guidance", np.inf, "guidance must be finite"),
        ("sample_from_noise", "noise", np.full((2, 8, 8, 3), np.inf), "noise must be finite"),
        ("denoise", "x", np.full((2, 8, 8, 3), np.nan), "x must be finite"),
        ("denoise", "level", [5.0, 100.0], r"level must be in \[0, 99\]"),  # of 100 timesteps
        ("denoise", "level", [-1.0, 5.0], r"level must be in \[0, 99\]"),
    ],
)
def test_other_values_are_refused(signatures, task, name, value, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ask(signatures, task, **{name: value})


def test_other_dtypes_and_names_are_refused(signatures):
    inputs = {name: tf.constant(GOOD[name]) for name in ("seeds", "label", "guidance")}
    with pytest.raises(tf.errors.InvalidArgumentError, match="to be a int32 tensor but is a int64"):
        signatures["sample"](**{**inputs, "label": tf.constant([0, 1], tf.int64)})
    with pytest.raises(TypeError, match=r"missing.*guidance"):
        signatures["sample"](seeds=inputs["seeds"], label=inputs["label"])


@pytest.mark.parametrize("kind", ["no_null_label", "no_classes", "no_level_of_zero"])
def test_what_is_refused_depends_on_the_model(make_model, models, kind, tmp_path):
    process = "edm" if kind == "no_level_of_zero" else "ddpm"
    changes = {"no_null_label": {"label_dropout": 0.0}, "no_classes": {"num_classes": 0}}
    path = tmp_path / "model"
    export_sampler(make_model(process, channels=1, **changes.get(kind, {})), path, num_steps=2)
    signatures = tf.saved_model.load(str(path)).signatures
    x = tf.zeros((2, 8, 8, 1))
    condition = {"label": tf.constant([0, 2]), "guidance": tf.constant(1.0)}
    if kind == "no_classes":
        images = signatures["sample"](seeds=tf.constant([3, 4], tf.int64))["images"]
        assert images.shape == (2, 8, 8, 1)
        with pytest.raises(TypeError, match="label"):
            signatures["sample"](seeds=tf.constant([3, 4], tf.int64), label=condition["label"])
        return
    if kind == "no_level_of_zero":
        for level in (0.0, np.inf):
            with pytest.raises(tf.errors.InvalidArgumentError, match="level must be finite and ab"):
                signatures["denoise"](x=x, level=tf.fill([2], level), **condition)
        level = tf.constant([1e-3, 1e3])
        assert np.isfinite(signatures["denoise"](x=x, level=level, **condition)["clean"]).all()
        return
    signatures["sample_from_noise"](noise=x, **condition)
    for name, value, message in (
        ("label", tf.constant([0, 3]), r"label must be in \[0, 2\]"),
        ("guidance", tf.constant(2.0), "guidance must be 1, none: no null condition was learned"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signatures["sample_from_noise"](noise=x, **{**condition, name: value})


def test_answers_that_are_no_numbers_are_refused(make_model, tmp_path):
    model = make_model("ddpm")
    for weight in model.ema_backbone.weights:
        weight.assign(np.full(weight.shape, np.nan))
    export_sampler(model, tmp_path / "model", samplers.DDIM(2))
    signatures = tf.saved_model.load(str(tmp_path / "model")).signatures
    for task in TASKS:
        with pytest.raises(tf.errors.InvalidArgumentError, match="the model's answer is not fin"):
            ask(signatures, task)


def test_metadata_says_what_is_allowed(served):
    metadata = json.loads((served / "assets.extra" / "metadata.json").read_text())
    assert metadata["signatures"]["denoise"] == {
        "inputs": {
            "x": {"dtype": "float32", "shape": [None, 8, 8, 3], "range": [None, None]},
            "level": {"dtype": "float32", "shape": [None], "range": [0.0, 99.0]},
            "label": {"dtype": "int32", "shape": [None], "range": [0, 3]},
            "guidance": {"dtype": "float32", "shape": [], "range": [0, None]},
        },
        "outputs": {"clean": {"dtype": "float32", "shape": [None, 8, 8, 3], "range": [None, None]}},
    }
    sample = metadata["signatures"]["sample"]
    assert sample["inputs"]["seeds"] == {"dtype": "int64", "shape": [None], "range": [0, None]}
    assert sample["outputs"]["images"]["range"] == [0, 255]

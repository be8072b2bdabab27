"""Models that take contexts: training, guidance by them, what is refused."""

import keras
import numpy as np
import pytest

from keras_cdiff import evaluation, sample, samplers


def contexts(count, length=3):
    """One of two contexts each, in turn."""
    context = np.zeros((count, length, 6), "float32")
    context[::2, :2], context[1::2, :1] = 1.0, -1.0
    return context


@pytest.fixture(scope="module")
def model(make_model, batch, quick):
    """A model that has learned that images are bright under one context and dark under another."""
    keras.utils.set_random_seed(0)  # fixtures of a module come before those of its tests
    model = make_model(num_classes=0, context_width=6, width=32)
    images = np.ones((16, 8, 8, 3), "float32") * np.where(np.arange(16) % 2, -1.0, 1.0).reshape(
        -1, 1, 1, 1
    )
    model.compile(keras.optimizers.AdamW(1e-2), **quick)
    data = {"image": images.astype("float32"), "context": contexts(16)}
    model.fit(data, batch_size=16, epochs=60, verbose=0)
    return model


def test_a_model_learns_what_a_context_means(model):
    options = {"sampler": samplers.Heun(6), "progress": False}
    bright, dark = sample(model, 2, context=contexts(2), **options).mean(axis=(1, 2, 3))
    assert bright > 0.5
    assert dark < -0.5


def test_guidance_goes_from_the_null_context_to_the_given_one(model):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    level, context = np.array([1.0, 1.0], "float32"), contexts(2)

    def estimate(**condition):
        return keras.ops.convert_to_numpy(model.denoise(x, level, **condition))

    null, given = estimate(), estimate(context=context)
    guided = estimate(context=context, guidance=3.0)
    np.testing.assert_allclose(guided, null + 3.0 * (given - null), atol=1e-4)
    assert np.abs(given - null).max() > 0.1


def test_a_validation_loss_sees_contexts(model):
    images = (
        np.ones((4, 8, 8, 3), "float32") * np.array([1, -1, 1, -1], "float32")[:, None, None, None]
    )
    right, wrong = (
        evaluation.ValidationLoss(images, context=context, levels_per_cluster=1)(model)["loss"]
        for context in (contexts(4), contexts(5)[1:])
    )
    assert right < 0.9 * wrong
    with pytest.raises(ValueError, match=r"must be 4 contexts.*Received: context of shape"):
        evaluation.ValidationLoss(images, context=contexts(3))


@pytest.mark.parametrize(
    ("change", "received"),
    [
        ({"context": np.zeros((4, 3, 5), "float32")}, r"context.shape=\(4, 3, 5\)"),
        ({"context": np.zeros((4, 6), "float32")}, r"context.shape=\(4, 6\)"),
        ({"context": np.full((4, 3, 6), np.nan, "float32")}, "72 values that are NaN"),
    ],
)
def test_contexts_that_do_not_fit_are_named(model, change, received):
    data = {"image": np.zeros((4, 8, 8, 3), "float32"), **change}
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        model.fit(data, verbose=0)
    if change["context"].ndim == 3:  # others are one context for all samples
        with pytest.raises(ValueError, match=f"Received: .*{received}"):
            sample(model, 4, **change, progress=False)


def test_conditions_that_were_not_learned(make_model):
    model = make_model(num_classes=0, context_width=6, context_dropout=0.0)
    with pytest.raises(ValueError, match=r"never saw in training.*context_dropout=0"):
        sample(model, 2, context=contexts(2), guidance=2.0, progress=False)
    assert not model.network_inputs.can_be_guided
    plain = make_model(num_classes=0)
    assert not plain.network_inputs.can_be_guided
    with pytest.raises(ValueError, match="takes no context"):
        sample(plain, 2, context=contexts(2), progress=False)
    assert make_model(context_width=6).network_inputs.can_be_guided
    assert not make_model(context_width=6, label_dropout=0.0).network_inputs.can_be_guided

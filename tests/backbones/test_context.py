"""Conditioning on a context: attention by hand, padding, the null context."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.backbones import DiT
from keras_cdiff.backbones.context import ContextEmbedding, CrossAttention, drop_context


def array(tensor):
    return ops.convert_to_numpy(tensor)


def contexts(*lengths, width=6, longest=None):
    """Contexts (B, L, width) of so many rows each, padded with zeros."""
    result = np.zeros((len(lengths), longest or max(lengths), width), "float32")
    rng = np.random.default_rng(0)
    for context, length in zip(result, lengths, strict=True):
        context[:length] = rng.normal(size=(length, width))
    return result


def small(**arguments):
    """A network whose weights are all random, so that nothing starts at zero."""
    network = DiT(8, **{"width": 16, "depth": 2, "num_heads": 2, "context_width": 6, **arguments})
    rng = np.random.default_rng(1)
    for weight in network.trainable_weights:
        weight.assign(rng.normal(size=weight.shape) * 0.3)
    return network


X = np.random.default_rng(2).normal(size=(3, 8, 8, 3)).astype("float32")
LEVEL = np.array([0.1, 0.5, 2.0], "float32")


def weight(layer, name):
    return array(getattr(layer, name)).astype("float64")


def test_cross_attention_is_that_of_its_formula():
    layer = CrossAttention(2)
    layer.build((None, 5, 8), (None, None, 8))
    for variable in layer.weights:
        variable.assign(np.random.default_rng(3).normal(size=variable.shape))
    x = np.random.default_rng(4).normal(size=(2, 5, 8))
    context = np.random.default_rng(5).normal(size=(2, 3, 8))
    mask = np.array([[1, 1, 0], [1, 0, 1]])

    def dense(part, value):
        return value @ weight(part, "kernel") + weight(part, "bias")

    query = dense(layer.query, x).reshape(2, 5, 2, 4)
    key, value = np.split(dense(layer.key_value, context), 2, axis=-1)
    key, value = key.reshape(2, 3, 2, 4), value.reshape(2, 3, 2, 4)
    logits = np.einsum("bnhd,bshd->bhns", query, key) / np.sqrt(4)
    weights = np.exp(logits) * mask[:, None, None]
    weights /= weights.sum(axis=-1, keepdims=True)
    attended = np.einsum("bhns,bshd->bnhd", weights, value).reshape(2, 5, 8)
    got = layer(x.astype("float32"), context.astype("float32"), mask.astype("float32"))
    np.testing.assert_allclose(array(got), dense(layer.projection, attended), atol=1e-4)


def test_a_context_becomes_tokens_a_mask_and_a_mean():
    layer = ContextEmbedding(4)
    layer.build((None, None, 6))
    context = contexts(2, 0, 3)
    tokens, mask, pooled = layer(context)
    assert tokens.shape == (3, 4, 4)
    expected_mask = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]  # the null token comes first
    np.testing.assert_array_equal(array(mask), expected_mask)
    means = np.stack([context[0, :2].mean(axis=0), np.zeros(6), context[2].mean(axis=0)])
    expected = means @ weight(layer.pooled, "kernel") + weight(layer.pooled, "bias")
    np.testing.assert_allclose(array(pooled), expected, atol=1e-5)
    null = weight(layer, "null")
    null = (null - null.mean()) / np.sqrt(null.var() + 1e-6)
    np.testing.assert_allclose(array(tokens)[:, 0], np.tile(null, (3, 1)), atol=1e-4)


def test_padding_changes_nothing_and_tokens_do():
    network = small()
    context = contexts(2, 1, 3)
    output = array(network(X, LEVEL, context=context))
    padded = contexts(2, 1, 3, longest=7)
    np.testing.assert_allclose(
        array(network(X, LEVEL, context=padded)), output, rtol=1e-5, atol=1e-4
    )
    # The order of tokens is in their features, so that attention sees them as a set.
    swapped = context.copy()
    swapped[2] = swapped[2, ::-1]
    np.testing.assert_allclose(
        array(network(X, LEVEL, context=swapped)), output, rtol=1e-5, atol=1e-4
    )
    changed = context.copy()
    changed[0, 1] *= -1
    other = np.abs(array(network(X, LEVEL, context=changed)) - output).max(axis=(1, 2, 3))
    assert other[0] > 0.01
    assert other[1:].max() < 1e-6


def test_none_stands_for_the_null_context():
    network = small()
    output = array(network(X, LEVEL))
    zeros = array(network(X, LEVEL, context=np.zeros((3, 4, 6), "float32")))
    np.testing.assert_allclose(output, zeros, atol=1e-5)
    assert np.abs(array(network(X, LEVEL, context=contexts(1, 2, 3))) - output).max() > 0.01
    with pytest.raises(ValueError, match=r"context_dropout > 0.*Received: context=None"):
        small(context_dropout=0.0)(X, LEVEL)


def test_training_drops_contexts_at_their_rate():
    context = np.ones((4000, 1, 6), "float32")
    dropped = array(drop_context(context, 0.25, keras.random.SeedGenerator(0)))
    whole = dropped.min(axis=(1, 2)) == dropped.max(axis=(1, 2))
    assert whole.all()  # all of a context or nothing
    assert abs(np.mean(dropped == 0.0) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    network = small(context_dropout=0.999)
    np.testing.assert_allclose(
        array(network(X, LEVEL, context=contexts(1, 2, 3), training=True)),
        array(network(X, LEVEL)),
        atol=1e-5,
    )


def test_a_context_works_beside_labels_and_under_every_policy():
    arguments = {"num_classes": 3, "rematerialize": True}
    network = small(**arguments)
    inputs = {"label": np.array([0, 1, 3], "int32"), "context": contexts(2, 0, 3)}
    expected = array(network(X, LEVEL, **inputs))
    scale = np.abs(expected).max()
    for policy in ("mixed_bfloat16", "mixed_float16"):
        half = small(**arguments, dtype=policy)
        output = half(X, LEVEL, **inputs)
        assert keras.backend.standardize_dtype(output.dtype) == "float32"
        np.testing.assert_allclose(array(output), expected, atol=0.1 * scale)
        # Rows too small for half precision are tokens all the same.
        tiny = 1e-30 * np.ones((3, 2, 6), "float32")
        _, mask, _ = half.context_embedding(tiny)
        np.testing.assert_array_equal(array(mask), np.ones((3, 3)))


def test_the_network_is_built_again_from_its_configuration():
    network = small()
    again = DiT.from_config(network.get_config())
    again.set_weights(network.get_weights())
    context = contexts(2, 1, 3)
    np.testing.assert_allclose(
        array(again(X, LEVEL, context=context)),
        array(network(X, LEVEL, context=context)),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"context_width": -1}, "context_width=-1"),
        ({"context_width": 2.5}, "context_width=2.5"),
        ({"context_dropout": 1.0}, "context_dropout=1.0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        small(**arguments)


@pytest.mark.parametrize(
    ("context", "received"),
    [
        (np.zeros((3, 2, 5), "float32"), r"context.shape=\(3, 2, 5\)"),
        (np.zeros((3, 6), "float32"), r"context.shape=\(3, 6\)"),
        (np.zeros((3, 2, 6), "int32"), "context.dtype=int32"),
    ],
)
def test_contexts_that_do_not_fit(context, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        small()(X, LEVEL, context=context)

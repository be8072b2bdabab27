"""The layers shared by the backbones."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.backbones import layers


def test_position_table_is_the_official_one(golden):
    table = layers.position_table(16, 32)
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, golden("dit_base")["out/pos_embed_16x16_d32"], atol=1e-6)


def test_layer_norm_is_computed_in_float32():
    x = 300.0 + np.random.default_rng(0).normal(size=(2, 3, 64))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normal = ops.convert_to_numpy(layers.layer_norm(ops.cast(x, "float32")))
    np.testing.assert_allclose(normal, expected, atol=1e-3)
    # The squares of these values overflow float16.
    half = layers.layer_norm(ops.cast(x, "float16"))
    assert keras.backend.standardize_dtype(half.dtype) == "float16"
    np.testing.assert_allclose(ops.convert_to_numpy(half), expected, atol=0.5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_token_dense_is_a_dense_layer(policy):
    token_dense = layers.TokenDense(7, activation="relu", bias_initializer="ones", dtype=policy)
    dense = keras.layers.Dense(7, activation="relu", dtype=policy)
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    outputs = token_dense(x)
    dense.build(x.shape)
    dense.set_weights(token_dense.get_weights())
    assert outputs.dtype == dense(x).dtype
    expected = ops.convert_to_numpy(ops.cast(dense(x), "float32"))
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(outputs, "float32")), expected, atol=1e-6
    )


def test_a_label_that_is_repeated_has_the_sum_of_its_gradients():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.table = layers.LabelEmbedding(3, 2)

        def call(self, label):
            return self.table(label)

    network = Network()
    # Three gradients of 1 / 4 each make 3 / 4, which Adam's second moment squares.
    optimizer = keras.optimizers.Adam(0.0, beta_1=0.0, beta_2=0.5)
    network.compile(optimizer, loss=lambda y, prediction: ops.sum(prediction, axis=-1) * 1.0)
    label = np.array([2, 2, 0, 2], "int32")
    network.train_on_batch(label, np.zeros((4, 2), "float32"))
    (second,) = (v for v in optimizer.variables if v.path.endswith("velocity"))
    expected = 0.5 * np.array([[1 / 4, 1 / 4], [0, 0], [3 / 4, 3 / 4]]) ** 2
    np.testing.assert_allclose(ops.convert_to_numpy(second), expected, atol=1e-7)


def test_self_attention_is_softmax_attention_by_head():
    attention = layers.SelfAttention(num_heads=2)
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    actual = ops.convert_to_numpy(attention(x))
    qkv, qkv_bias, projection, bias = (w.astype("float64") for w in attention.get_weights())
    expected = np.zeros(x.shape)
    queries, keys, values = np.split(x @ qkv + qkv_bias, 3, axis=-1)
    for head in (slice(0, 4), slice(4, 8)):
        logits = queries[..., head] @ keys[..., head].transpose(0, 2, 1) / np.sqrt(4)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected[..., head] = weights @ values[..., head]
    np.testing.assert_allclose(actual, expected @ projection + bias, atol=1e-5)


def test_level_embedding_starts_from_cosines_then_sines():
    embedding = layers.TimestepEmbedding(6, num_frequencies=6)
    level = np.array([0.0, 0.5, 3.0, -1.25])
    actual = ops.convert_to_numpy(embedding(level))
    kernel, bias, output_kernel, output_bias = embedding.get_weights()
    angles = level[:, None] * 10_000.0 ** (-np.arange(3) / 3)
    hidden = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) @ kernel + bias
    hidden = hidden / (1.0 + np.exp(-hidden))
    np.testing.assert_allclose(actual, hidden @ output_kernel + output_bias, atol=1e-6)


def test_modulation():
    x, shift, scale = np.ones((1, 2, 3)), np.full((1, 1, 3), 5.0), np.full((1, 1, 3), 2.0)
    np.testing.assert_allclose(layers.modulate(x, shift, scale), np.full((1, 2, 3), 8.0))


@pytest.mark.parametrize(
    "layer",
    [
        layers.TokenDense(4),
        layers.LabelEmbedding(3, 4),
        layers.TimestepEmbedding(4, num_frequencies=8),
        layers.SelfAttention(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_configuration_round_trip(layer):
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(clone) is type(layer)
    assert clone.get_config() == layer.get_config()

"""Layers shared by the backbones: dense layers over tokens, embeddings, attention, modulation."""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_cdiff.distribution import replica

Tensor = keras.KerasTensor

# How a backend rematerializes where keras.remat does not serve; `train_step` adds to it.
REMATERIALIZATIONS: dict[str, Callable[..., Tensor]] = {}

_MAX_PERIOD = 10_000.0


def position_table(grid: int, width: int) -> np.ndarray:
    """Returns the fixed sin-cos positions of a square of tokens, row by row.

    The first half of the features encodes the column, the second half the row. Each half is
    [sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (width / 4)).

    Args:
        grid: tokens along one side.
        width: number of features, a multiple of 4.

    Returns:
        (grid * grid, width) float64.

    Source: Peebles and Xie, 2023, section 3.2, after Vaswani et al., 2017, section 3.5.
    """
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    frequencies = _MAX_PERIOD ** -np.linspace(0.0, 1.0, width // 4, endpoint=False)
    angles = [np.outer(positions, frequencies) for positions in (columns, rows)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)


def level_angles(level: Tensor, count: int, endpoint: bool = False) -> Tensor:
    """Returns the angles level w_i of sinusoids with w_i from 1 down to 1 / 10000, (B, count).

    Args:
        level: (B,), the network's input for the noise level.
        count: number of frequencies w_i = 10000^(-i / n).
        endpoint: whether the last is 1 / 10000 itself (n = count - 1), or would be the next one
            (n = count).

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """
    exponents = ops.arange(count, dtype="float32") * (-math.log(_MAX_PERIOD) / (count - endpoint))
    return ops.cast(level, "float32")[:, None] * ops.exp(exponents)


def layer_norm(x: Tensor) -> Tensor:
    """Returns (x - mean) / sqrt(variance + 1e-6) over the last axis, computed in float32.

    Source: Ba et al., "Layer Normalization", 2016, without the learned scale and shift.
    """
    return ops.layer_normalization(x, epsilon=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x (1 + scale) + shift (adaLN: Peebles and Xie, 2023, section 3.2)."""
    return x * (1.0 + scale) + shift


def drop_labels(
    label: Tensor, rate: float, null_label: int, seed_generator: keras.random.SeedGenerator
) -> Tensor:
    """Replaces each label (B,) by the null label with probability `rate`.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2021, algorithm 1.
    """
    dropped = replica.uniform(ops.shape(label), seed_generator) < rate
    return ops.where(dropped, ops.cast(null_label, label.dtype), label)


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None = None
) -> Tensor:
    """Returns softmax(q k^T / sqrt(D / heads)) v, of each head, side by side.

    Args:
        query: (B, N, D), D a multiple of `num_heads`.
        key: (B, S, D).
        value: (B, S, D).
        num_heads: number of heads.
        mask: (B, S), 1 for keys that may be attended to and 0 for others; None for all.

    Returns:
        (B, N, D), of the dtype of `query`.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.
    """
    dtype, width = query.dtype, query.shape[-1]

    def split(x: Tensor) -> Tensor:
        if keras.backend.backend() == "jax" and keras.backend.standardize_dtype(dtype) == "float16":
            # JAX multiplies float16 with float32 sums here, which XLA cannot on a CPU.
            x = ops.cast(x, "float32")
        length = ops.shape(x)[1]  # of a context, not always known beforehand
        return ops.reshape(x, (-1, length, num_heads, width // num_heads))

    if mask is not None:
        # Not by indexing with None, which LiteRT does not know where a size is not known.
        mask = ops.expand_dims(ops.cast(mask, "bool"), axis=(1, 2))
    attended = ops.dot_product_attention(split(query), split(key), split(value), mask=mask)
    return ops.reshape(ops.cast(attended, dtype), (-1, ops.shape(query)[1], width))


@keras.saving.register_keras_serializable("keras_cdiff")
class TokenDense(keras.layers.Dense):
    """A dense layer over tokens (B, N, D) or pixels (B, H, W, D), computed as one matrix product
    over (B N, D).
    """

    # On CPU, JAX is twice as slow at the weight gradient of a product over (B, N, D).
    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        *positions, width = ops.shape(inputs)[1:]
        outputs = super().call(ops.reshape(inputs, (-1, width)), training=training)
        return ops.reshape(outputs, (-1, *positions, self.units))


@keras.saving.register_keras_serializable("keras_cdiff")
class LabelEmbedding(keras.layers.Embedding):
    """A table of one row a class, whose gradient is dense."""

    # TensorFlow's gradient of a lookup is a row for each label, and Keras' optimizers square the
    # rows before those of one label are added: Adam and clipping by norm would go wrong.
    def call(self, inputs: Tensor) -> Tensor:
        table = ops.convert_to_tensor(self.embeddings)
        return ops.take(ops.reshape(table, table.shape), inputs, axis=0)


@keras.saving.register_keras_serializable("keras_cdiff")
class TimestepEmbedding(keras.layers.Layer):
    """Embeds noise levels (B,) as sinusoids [cos(t w_i), sin(t w_i)] that two dense layers follow.

    w_i = 10000^(-i / (num_frequencies / 2)). Float32 under every dtype policy: in bfloat16,
    timestep 999 would be 1000.

    Args:
        width: number of features, also of the hidden layer.
        num_frequencies: number of sinusoids, even.

    Source: Dhariwal and Nichol, 2021; Peebles and Xie, 2023, appendix A.
    """

    def __init__(self, width: int, num_frequencies: int = 256, **kwargs: object):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.width = width
        self.num_frequencies = num_frequencies
        self.hidden = self._dense("hidden", activation="silu")
        self.projection = self._dense("projection")

    def _dense(self, name: str, **kwargs: object) -> keras.layers.Dense:
        normal = keras.initializers.RandomNormal(stddev=0.02)
        return keras.layers.Dense(
            self.width, kernel_initializer=normal, dtype="float32", name=name, **kwargs
        )

    def build(self, level_shape: tuple) -> None:
        self.hidden.build((None, self.num_frequencies))
        self.projection.build((None, self.width))

    def call(self, level: Tensor) -> Tensor:
        angles = level_angles(level, self.num_frequencies // 2)
        waves = ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)
        return self.projection(self.hidden(waves))

    def get_config(self) -> dict:
        sizes = {"width": self.width, "num_frequencies": self.num_frequencies}
        return {**super().get_config(), **sizes}


@keras.saving.register_keras_serializable("keras_cdiff")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention over tokens (B, N, D), D a multiple of `num_heads`.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.
    """

    def __init__(
        self,
        num_heads: int,
        qkv_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        projection_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        **kwargs: object,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.qkv_initializer = keras.initializers.get(qkv_initializer)
        self.projection_initializer = keras.initializers.get(projection_initializer)

    def build(self, x_shape: tuple) -> None:
        width = x_shape[-1]
        self.qkv = TokenDense(
            3 * width,
            kernel_initializer=self.qkv_initializer,
            dtype=self.dtype_policy,
            name="qkv",
        )
        self.projection = TokenDense(
            width,
            kernel_initializer=self.projection_initializer,
            dtype=self.dtype_policy,
            name="projection",
        )
        self.qkv.build(x_shape)
        self.projection.build(x_shape)

    def call(self, x: Tensor) -> Tensor:
        query, key, value = ops.split(self.qkv(x), 3, axis=-1)
        return self.projection(attend(query, key, value, self.num_heads))

    def get_config(self) -> dict:
        serialize = keras.initializers.serialize
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "qkv_initializer": serialize(self.qkv_initializer),
            "projection_initializer": serialize(self.projection_initializer),
        }


def rematerialized(layer: keras.layers.Layer, *inputs: Tensor) -> Tensor:
    """Returns `layer(*inputs)`, of which a gradient keeps the inputs and nothing from inside.

    Only reverse-mode gradients are defined.

    Args:
        layer: a built layer that draws no random numbers and changes no state.
        *inputs: tensors of a float dtype whose first axis is the batch.

    Returns:
        The layer's output, one tensor whose first axis is the batch.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    implementation = REMATERIALIZATIONS.get(keras.backend.backend())
    return keras.remat(layer)(*inputs) if implementation is None else implementation(layer, *inputs)

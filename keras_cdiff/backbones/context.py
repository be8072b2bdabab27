"""Conditioning on a sequence, such as the tokens of a text: its embedding, and attention to it."""

import keras
from keras import ops

from keras_cdiff.backbones.layers import TokenDense, attend, layer_norm
from keras_cdiff.distribution import replica

Tensor = keras.KerasTensor


def context_mask(context: Tensor) -> Tensor:
    """Returns 1.0 for the rows of a context (B, L, D) that are not all zero, which are its tokens,
    and 0.0 for padding: (B, L) float32.
    """
    return ops.cast(ops.any(ops.not_equal(context, 0), axis=-1), "float32")


def drop_context(
    context: Tensor, rate: float, seed_generator: keras.random.SeedGenerator
) -> Tensor:
    """Replaces each context of (B, L, D) by the null context, all zeros, with probability `rate`.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2021, algorithm 1.
    """
    draws = replica.uniform(ops.shape(context)[:1], seed_generator)
    return ops.where(draws[:, None, None] < rate, ops.zeros_like(context), context)


@keras.saving.register_keras_serializable("keras_cdiff")
class ContextEmbedding(keras.layers.Layer):
    """Maps a context to tokens that blocks attend to, and to one vector for their modulation.

    tokens = [null, W_1 c_1, ..., W_1 c_L], where `null` is learned and never masked, so that an
    empty context attends to something; pooled = W_2 (mean of the c_i that are not padding) + b,
    which is b for an empty one. The pooled vector is float32 under every dtype policy.

    Args:
        width: features of a token.

    Source: cross-attention and a pooled embedding in adaLN as in Peebles and Xie, 2023, section
        3.2, and Chen et al., "PixArt-alpha", 2024, section 2.3.
    """

    def __init__(self, width: int, **kwargs: object):
        super().__init__(**{**kwargs, "autocast": False})
        self.width = width

    def build(self, context_shape: tuple) -> None:
        self.null = self.add_weight(
            name="null",
            shape=(self.width,),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,
        )
        self.projection = TokenDense(self.width, dtype=self.dtype_policy, name="projection")
        self.projection.build((None, None, context_shape[-1]))
        self.pooled = keras.layers.Dense(self.width, dtype="float32", name="pooled")
        self.pooled.build((None, context_shape[-1]))

    def call(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, L, D) to tokens (B, L + 1, width), their mask (B, L + 1), and (B, width)."""
        mask = context_mask(context)
        context = ops.cast(context, "float32")
        total = ops.sum(context * ops.expand_dims(mask, axis=2), axis=1)
        count = ops.maximum(ops.sum(mask, axis=1, keepdims=True), 1.0)
        pooled = self.pooled(total / count)
        tokens = self.projection(ops.cast(context, self.compute_dtype))
        null = ops.cast(ops.convert_to_tensor(self.null), self.compute_dtype)
        first = ops.zeros_like(tokens[:, :1]) + null
        mask = ops.concatenate([ops.ones_like(mask[:, :1]), mask], axis=1)
        return layer_norm(ops.concatenate([first, tokens], axis=1)), mask, pooled

    def get_config(self) -> dict:
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, "width": self.width}


@keras.saving.register_keras_serializable("keras_cdiff")
class CrossAttention(keras.layers.Layer):
    """Multi-head attention of tokens (B, N, D) to the tokens of a context (B, S, D).

    The last map starts at zero, so a network starts as it would be without a context.

    Args:
        num_heads: attention heads, a divisor of D.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.
    """

    def __init__(self, num_heads: int, **kwargs: object):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, x_shape: tuple, context_shape: tuple, mask_shape: tuple | None = None) -> None:
        policy, width = self.dtype_policy, x_shape[-1]
        self.query = TokenDense(width, dtype=policy, name="query")
        self.key_value = TokenDense(2 * width, dtype=policy, name="key_value")
        self.projection = TokenDense(
            width, kernel_initializer="zeros", dtype=policy, name="projection"
        )
        self.query.build(x_shape)
        self.key_value.build(context_shape)
        self.projection.build(x_shape)

    def call(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Maps tokens to tokens; the mask (B, S) is 1 for what may be attended to, 0 elsewhere."""
        key, value = ops.split(self.key_value(context), 2, axis=-1)
        return self.projection(attend(self.query(x), key, value, self.num_heads, mask))

    def get_config(self) -> dict:
        return {**super().get_config(), "num_heads": self.num_heads}

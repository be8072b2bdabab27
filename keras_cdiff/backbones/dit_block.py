"""The transformer block of a DiT."""

import keras
from keras import ops

from keras_cdiff.backbones.context import CrossAttention
from keras_cdiff.backbones.layers import SelfAttention, TokenDense, layer_norm, modulate

Tensor = keras.KerasTensor


@keras.saving.register_keras_serializable("keras_cdiff")
class DiTBlock(keras.layers.Layer):
    """A transformer block whose norms and residuals the condition modulates (adaLN-Zero).

    x <- x + g_1 attention(norm(x) (1 + s_1) + b_1), then the same with a two-layer perceptron. The
    condition gives b, s and g by one linear map that starts at zero: the block starts as identity.
    With a context there is x <- x + attention(norm(x), context) between the two.

    Args:
        num_heads: attention heads.
        mlp_ratio: width of the perceptron's hidden layer, in units of the block's width.
        attends_to_context: whether the block attends to a context.

    Source: Peebles and Xie, 2023, section 3.2 and figure 3; cross-attention where Chen et al.,
        "PixArt-alpha", 2024, section 2.3, have it.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float = 4.0,
        attends_to_context: bool = False,
        **kwargs: object,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.attends_to_context = attends_to_context

    def build(self, x_shape: tuple, condition_shape: tuple, *context_shapes: tuple) -> None:
        policy, width = self.dtype_policy, x_shape[-1]
        hidden_width = int(width * self.mlp_ratio)
        self.modulation = keras.layers.Dense(
            6 * width, kernel_initializer="zeros", dtype=policy, name="modulation"
        )
        self.attention = SelfAttention(self.num_heads, dtype=policy, name="attention")
        if self.attends_to_context:
            self.cross_attention = CrossAttention(
                self.num_heads, dtype=policy, name="cross_attention"
            )
            self.cross_attention.build(x_shape, (None, None, width))
        self.hidden = TokenDense(hidden_width, dtype=policy, name="hidden")
        self.projection = TokenDense(width, dtype=policy, name="projection")
        self.modulation.build(condition_shape)
        self.attention.build(x_shape)
        self.hidden.build(x_shape)
        self.projection.build((*x_shape[:-1], hidden_width))

    def call(
        self,
        x: Tensor,
        condition: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Maps tokens (B, N, D) to tokens.

        Args:
            x: the tokens.
            condition: (B, D), after its SiLU.
            context: (B, S, D), tokens to attend to.
            mask: (B, S), 1 for those of them that are no padding.
        """
        b1, s1, g1, b2, s2, g2 = ops.split(self.modulation(condition)[:, None], 6, axis=-1)
        x = x + g1 * self.attention(modulate(layer_norm(x), b1, s1))
        if self.attends_to_context:
            x = x + self.cross_attention(layer_norm(x), context, mask)
        hidden = ops.gelu(self.hidden(modulate(layer_norm(x), b2, s2)), approximate=True)
        return x + g2 * self.projection(hidden)

    def get_config(self) -> dict:
        sizes = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio}
        return {**super().get_config(), **sizes, "attends_to_context": self.attends_to_context}

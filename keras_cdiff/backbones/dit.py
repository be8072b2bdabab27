"""DiT: a transformer over image patches, conditioned by adaptive layer norm.

Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023.
"""

import re

import keras
from keras import ops

from keras_cdiff.backbones.backbone import check_inputs
from keras_cdiff.backbones.context import ContextEmbedding, CrossAttention, drop_context
from keras_cdiff.backbones.layers import (
    LabelEmbedding,
    SelfAttention,
    TimestepEmbedding,
    TokenDense,
    drop_labels,
    layer_norm,
    modulate,
    position_table,
    rematerialized,
)
from keras_cdiff.common.checks import check_integer
from keras_cdiff.presets import DIT_SIZES

Tensor = keras.KerasTensor


@keras.saving.register_keras_serializable("keras_cdiff")
class DiT(keras.Model):
    """Diffusion transformer with adaLN-Zero conditioning on the noise level and a class label, or a
    context such as a text, to whose tokens each block attends as well.

    Initialised as its paper describes: at the start the output is exactly zero. Noise level, output
    and the embeddings of level and label are float32 under every dtype policy.

    Args:
        image_size: height and width of an image, a multiple of `patch_size`.
        patch_size: height and width of the patch that makes a token.
        channels: channels of an image.
        width: features of a token, a multiple of `num_heads` and of 4.
        depth: number of blocks.
        num_heads: attention heads in a block.
        mlp_ratio: width of the perceptrons' hidden layers, in units of `width`.
        num_classes: number of classes; 0 for a network that takes no labels.
        label_dropout: probability with which training replaces a label by the null label, in
            [0, 1). The null label exists only if this is above 0.
        context_width: features of a context's rows; 0 for a network that takes no context.
        context_dropout: probability with which training replaces a context by the null context, in
            [0, 1). The null context is learned only if this is above 0.
        out_channels: channels of the output; None for `channels`. A learned variance needs twice
            as many.
        rematerialize: whether the backward pass computes the activations inside each block again
            instead of keeping them: less memory, more work, the same weights and results.
        dtype: dtype or dtype policy of the computation.
        name: name of the network.
        trainable: whether the weights are trained.

    Call arguments:
        x: (B, H, W, C) noisy images, float.
        level: (B,) the network's input for the noise level: a timestep, whole or fractional, or
            c_noise.
        label: (B,) int class labels; `num_classes` is the null label, and None stands for it. A
            label beyond it cannot be detected inside a compiled step.
        context: (B, L, D) float, D = context_width, of any length L: rows that are all zero are
            padding, and a context of nothing else is the null context, for which None stands.
        augment: must be None, this network takes none.
        training: whether labels and contexts are dropped, and activations rematerialized.

    Returns:
        (B, H, W, out_channels) float32.

    Raises:
        ValueError: if sizes do not fit each other, or an input does not fit the network.
    """

    # Keras does not use XLA with TensorFlow on a CPU, where a small DiT is a third faster with it.
    prefers_xla = True

    def __init__(
        self,
        image_size: int,
        patch_size: int = 2,
        channels: int = 3,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        context_width: int = 0,
        context_dropout: float = 0.1,
        out_channels: int | None = None,
        rematerialize: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
        trainable: bool = True,
    ):
        # Keras would cast the noise level to the compute dtype; activations are cast by hand.
        super().__init__(autocast=False, dtype=dtype, name=name, trainable=trainable)
        self.image_size = image_size
        self.patch_size = patch_size
        self.channels = channels
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.context_width = context_width
        self.context_dropout = context_dropout
        self.out_channels = channels if out_channels is None else out_channels
        self.rematerialize = rematerialize
        self._check_sizes()
        self.grid = image_size // patch_size

        policy = self.dtype_policy
        self.seed_generator = keras.random.SeedGenerator()
        self.patch_embedding = TokenDense(width, dtype=policy, name="patch_embedding")
        self.level_embedding = TimestepEmbedding(width, name="level_embedding")
        self.label_embedding = None
        if num_classes:
            self.label_embedding = LabelEmbedding(
                num_classes + (label_dropout > 0),
                width,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
                dtype="float32",
                name="label_embedding",
            )
        self.context_embedding = None
        if context_width:
            self.context_embedding = ContextEmbedding(width, dtype=policy, name="context_embedding")
        self.blocks = [
            DiTBlock(num_heads, mlp_ratio, context_width > 0, dtype=policy, name=f"block_{i}")
            for i in range(depth)
        ]
        self.final_modulation = keras.layers.Dense(
            2 * width, kernel_initializer="zeros", dtype=policy, name="final_modulation"
        )
        self.final_projection = TokenDense(
            patch_size**2 * self.out_channels,
            kernel_initializer="zeros",
            dtype=policy,
            name="final_projection",
        )
        self.build()

    @classmethod
    def from_name(cls, name: str, image_size: int, **overrides: object) -> "DiT":
        """Builds the network of a published name, such as "DiT-XL/2": size, then patch size.

        Args:
            name: DiT-S, DiT-B, DiT-L or DiT-XL, followed by /2, /4 or /8.
            image_size: height and width of an image; 32 for latents of 256 x 256 pixels.
            **overrides: other arguments of `DiT`, such as channels or num_classes.

        Source: Peebles and Xie, 2023, table 1.
        """
        match = re.fullmatch(r"DiT-(S|B|L|XL)/(2|4|8)", name)
        if match is None:
            raise ValueError(
                "A DiT is called DiT-S, DiT-B, DiT-L or DiT-XL, followed by /2, /4 or /8. "
                f"Received: name={name!r}"
            )
        sizes = {"patch_size": int(match[2]), **DIT_SIZES[match[1].lower()]}
        return cls(image_size, **{**sizes, **overrides})

    def build(self, input_shape: object = None) -> None:
        tokens = (None, self.grid**2, self.width)
        table = position_table(self.grid, self.width)
        self.positions = self.add_weight(
            name="positions",
            shape=tokens[1:],
            initializer=lambda shape, dtype: ops.convert_to_tensor(table, dtype=dtype),
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        self.patch_embedding.build((*tokens[:2], self.patch_size**2 * self.channels))
        self.level_embedding.build((None,))
        if self.label_embedding is not None:
            self.label_embedding.build((None,))
        if self.context_embedding is not None:
            self.context_embedding.build((None, None, self.context_width))
        for block in self.blocks:
            block.build(tokens, (None, self.width))
        self.final_modulation.build((None, self.width))
        self.final_projection.build(tokens)

    def call(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        augment: None = None,
        training: bool = False,
    ) -> Tensor:
        check_inputs(self, x, level, label, context)
        if augment is not None:
            raise ValueError(
                "A DiT is not conditioned on augmentation: leave `augment` out. "
                f"Received: augment.shape={tuple(augment.shape)}"
            )
        tokens = self.embed_patches(x)
        seen, pooled = (), None
        if self.context_embedding is not None:
            *seen, pooled = self.context_embedding(self._context(level, context, training))
        condition = self.condition(level, label, training, pooled)
        condition = ops.cast(condition, self.compute_dtype)
        again = self.rematerialize and training
        for block in self.blocks:
            inputs = tokens, condition, *seen
            tokens = rematerialized(block, *inputs) if again else block(*inputs)
        shift, scale = ops.split(self.final_modulation(condition)[:, None], 2, axis=-1)
        patches = self.final_projection(modulate(layer_norm(tokens), shift, scale))
        return ops.cast(self._from_patches(patches), "float32")

    def embed_patches(self, x: Tensor) -> Tensor:
        """Maps images (B, H, W, C) to tokens with their positions, (B, N, width), row by row."""
        g, p = self.grid, self.patch_size
        patches = ops.reshape(ops.cast(x, self.compute_dtype), (-1, g, p, g, p, self.channels))
        patches = ops.transpose(patches, (0, 1, 3, 2, 4, 5))
        patches = ops.reshape(patches, (-1, g * g, p * p * self.channels))
        return self.patch_embedding(patches) + ops.cast(self.positions, self.compute_dtype)

    def condition(
        self,
        level: Tensor,
        label: Tensor | None = None,
        training: bool = False,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """Returns SiLU of the sum of the embeddings of level, label and context, (B, width)
        float32.
        """
        embedding = self.level_embedding(level)
        if self.label_embedding is not None:
            if label is None and self.label_dropout == 0:
                raise ValueError(
                    "Without `label` the network uses the null label, which exists only with "
                    "label_dropout > 0: give `label`, or build with label_dropout > 0. "
                    f"Received: label=None, label_dropout={self.label_dropout}"
                )
            if label is None:
                label = ops.full_like(level, self.num_classes, dtype="int32")
            elif training and self.label_dropout > 0:
                label = drop_labels(
                    label, self.label_dropout, self.num_classes, self.seed_generator
                )
            embedding = embedding + self.label_embedding(label)
        return ops.silu(embedding if pooled is None else embedding + pooled)

    def _context(self, level: Tensor, context: Tensor | None, training: bool) -> Tensor:
        """The context, or the null one: where there is none, and now and then in training."""
        if context is None and self.context_dropout == 0:
            raise ValueError(
                "Without `context` the network uses the null context, which it has learned only "
                "with context_dropout > 0: give `context`, or build with context_dropout > 0. "
                f"Received: context=None, context_dropout={self.context_dropout}"
            )
        if context is None:
            return ops.zeros((ops.shape(level)[0], 1, self.context_width))
        if training and self.context_dropout > 0:
            return drop_context(context, self.context_dropout, self.seed_generator)
        return context

    def _from_patches(self, patches: Tensor) -> Tensor:
        g, p, c = self.grid, self.patch_size, self.out_channels
        pixels = ops.transpose(ops.reshape(patches, (-1, g, g, p, p, c)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(pixels, (-1, g * p, g * p, c))

    def _check_sizes(self) -> None:
        sizes = "image_size patch_size channels width depth num_heads out_channels"
        for name in sizes.split():
            check_integer(name, getattr(self, name), 1)
        for name in ("num_classes", "context_width"):
            check_integer(name, getattr(self, name), 0)
        if self.image_size % self.patch_size:
            raise ValueError(
                "`image_size` must be a multiple of `patch_size`. "
                f"Received: image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                "`width` must be a multiple of `num_heads` and of 4. "
                f"Received: width={self.width}, num_heads={self.num_heads}"
            )
        for name in ("label_dropout", "context_dropout"):
            rate = getattr(self, name)
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"`{name}` must lie in [0, 1). Received: {name}={rate}")

    def get_config(self) -> dict:
        names = (
            "image_size patch_size channels width depth num_heads mlp_ratio num_classes "
            "label_dropout context_width context_dropout out_channels rematerialize"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


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

"""Layers of the U-Nets: group norm, and the residual block that all of them are made of."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_cdiff.backbones.layers import SelfAttention, TokenDense
from keras_cdiff.backbones.resampling import downsample, upsample
from keras_cdiff.distribution import replica

Tensor = keras.KerasTensor


@keras.saving.register_keras_serializable("keras_cdiff")
class GroupNorm(keras.layers.Layer):
    """Group normalisation that takes what a noise level does to its input and output along.

    y = (1 + scale) (gamma (x + offset - mean) / sqrt(variance + epsilon) + beta) + shift

    with mean and variance over all pixels and a group's channels. There are as many groups, of
    equal size, as are possible with at most 32 groups and at least 4 channels in each. Computed in
    float32 under every dtype policy.

    Args:
        epsilon: added to the variance.

    Source: Wu and He, "Group Normalization", 2018; scale and shift as in Dhariwal and Nichol,
        "Diffusion Models Beat GANs on Image Synthesis", 2021, equation 3.
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: object):
        # Keras would cast what noise levels say to the compute dtype.
        super().__init__(**{**kwargs, "autocast": False})
        self.epsilon = epsilon

    def build(self, x_shape: tuple, *args: object) -> None:
        channels = x_shape[-1]
        self.groups = max(
            (g for g in range(1, min(32, channels // 4) + 1) if channels % g == 0), default=1
        )
        options = {"shape": (channels,), "dtype": "float32", "autocast": False}
        self.gamma = self.add_weight(name="gamma", initializer="ones", **options)
        self.beta = self.add_weight(name="beta", initializer="zeros", **options)

    def call(
        self,
        x: Tensor,
        offset: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Maps images (B, H, W, C) to images, given offset, scale and shift (B, C), float32."""
        # For each image and channel this is one affine map, found from the channel's moments. The
        # general layer of Keras makes several more passes over the pixels, and was 1.3 (TensorFlow)
        # to 3 times (JAX) as slow in training.
        pixels = ops.cast(x, "float32")
        mean = ops.mean(pixels, axis=(1, 2))
        # On PyTorch ops.moments is the squares' mean less the mean's square, which cancels.
        variance = ops.mean(ops.square(pixels - mean[:, None, None]), axis=(1, 2))
        if offset is not None:
            mean = mean + offset
        group_mean = self._over_groups(mean)
        group_variance = self._over_groups(variance + ops.square(mean - group_mean))
        slope = ops.rsqrt(group_variance + self.epsilon) * self.gamma
        constant = (0.0 if offset is None else offset) - group_mean
        constant = constant * slope + self.beta
        if scale is not None:
            slope, constant = slope * (1.0 + scale), constant * (1.0 + scale)
        if shift is not None:
            constant = constant + shift
        return ops.cast(pixels * slope[:, None, None] + constant[:, None, None], self.compute_dtype)

    def _over_groups(self, values: Tensor) -> Tensor:
        """Returns each channel's mean over its group, (B, C)."""
        size = values.shape[1] // self.groups
        means = ops.mean(ops.reshape(values, (-1, self.groups, size)), axis=-1)
        return ops.repeat(means, size, axis=-1)

    def get_config(self) -> dict:
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("keras_cdiff")
class UNetBlock(keras.layers.Layer):
    """A residual block conditioned on the noise level, which may resample by two and attend to all
    pixels.

        h = conv(resample(silu(norm(x)))),  h = conv(dropout(silu(modulated norm(h))))
        y = scale (h + skip(x)),  then y = scale (y + attention(norm(y)))

    Args:
        channels: channels of the output.
        resample: None, "down" or "up".
        num_heads: attention heads, 0 for none.
        dropout: probability in [0, 1) with which activations are dropped in training.
        adaptive_scale: whether the embedding scales and shifts the second norm's output (ADM), or
            is added before that norm (DDPM++).
        skip_scale: the factor `scale` of both sums.
        project_skip: whether a resampled skip is also projected where its channels stay.
        resample_filter: taps of the resampling filter.
        epsilon: added to the variance in the norms.
        initializer: of all kernels but those of the last convolution and of the attention.
        output_initializer: of the last convolution and of the attention's projection.
        attention_initializer: of the attention's queries, keys and values.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021, appendix H; Dhariwal and Nichol, "Diffusion Models Beat GANs on Image
        Synthesis", 2021, section 3.
    """

    def __init__(
        self,
        channels: int,
        resample: str | None = None,
        num_heads: int = 0,
        dropout: float = 0.0,
        adaptive_scale: bool = False,
        skip_scale: float = 1.0,
        project_skip: bool = True,
        resample_filter: Sequence[float] = (1, 1),
        epsilon: float = 1e-6,
        initializer: str | keras.initializers.Initializer = "glorot_uniform",
        output_initializer: str | keras.initializers.Initializer = "zeros",
        attention_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        **kwargs: object,
    ):
        # Keras would cast the embedding of the noise level to the compute dtype.
        super().__init__(**{**kwargs, "autocast": False})
        if resample not in (None, "down", "up"):
            raise ValueError(
                f'`resample` must be None, "down" or "up". Received: resample={resample!r}'
            )
        self.channels = channels
        self.resample = resample
        self.num_heads = num_heads
        self.dropout = dropout
        self.adaptive_scale = adaptive_scale
        self.skip_scale = skip_scale
        self.project_skip = project_skip
        self.resample_filter = tuple(resample_filter)
        self.epsilon = epsilon
        get = keras.initializers.get
        self.initializer = get(initializer)
        self.output_initializer = get(output_initializer)
        self.attention_initializer = get(attention_initializer)

    def build(self, x_shape: tuple, embedding_shape: tuple) -> None:
        policy, channels = self.dtype_policy, self.channels
        _, height, width, channels_in = x_shape
        factor = {None: 1.0, "down": 0.5, "up": 2.0}[self.resample]
        shape = (None, int(height * factor), int(width * factor), channels)
        self.norm_in = GroupNorm(self.epsilon, dtype=policy, name="norm_in")
        self.norm_in.build(x_shape)
        self.conv_in = keras.layers.Conv2D(
            channels,
            3,
            padding="same",
            dtype=policy,
            name="conv_in",
            kernel_initializer=self.initializer,
        )
        self.conv_in.build((*shape[:3], channels_in))
        # Noise levels are float32 under every policy.
        self.modulation = keras.layers.Dense(
            channels * (2 if self.adaptive_scale else 1),
            dtype="float32",
            name="modulation",
            kernel_initializer=self.initializer,
        )
        self.modulation.build(embedding_shape)
        self.norm_out = GroupNorm(self.epsilon, dtype=policy, name="norm_out")
        self.norm_out.build(shape)
        self.conv_out = keras.layers.Conv2D(
            channels,
            3,
            padding="same",
            kernel_initializer=self.output_initializer,
            dtype=policy,
            name="conv_out",
        )
        self.conv_out.build(shape)
        self.skip = None
        if channels != channels_in or (self.resample and self.project_skip):
            self.skip = TokenDense(
                channels, dtype=policy, name="skip", kernel_initializer=self.initializer
            )
            self.skip.build((*shape[:3], channels_in))
        self.attention = None
        if self.num_heads:
            self.norm_attention = GroupNorm(self.epsilon, dtype=policy, name="norm_attention")
            self.norm_attention.build(shape)
            self.attention = SelfAttention(
                self.num_heads,
                qkv_initializer=self.attention_initializer,
                projection_initializer=self.output_initializer,
                dtype=policy,
                name="attention",
            )
            self.attention.build((None, shape[1] * shape[2], channels))

    def call(
        self,
        x: Tensor,
        embedding: Tensor,
        seed_generator: keras.random.SeedGenerator | None = None,
        training: bool = False,
    ) -> Tensor:
        """Maps images (B, H, W, C) and the noise level's embedding (B, D) float32 to images;
        `seed_generator` draws the dropout.
        """
        h = self.conv_in(self._resampled(ops.silu(self.norm_in(x))))
        modulation = self.modulation(embedding)
        if self.adaptive_scale:
            scale, shift = ops.split(modulation, 2, axis=-1)
            h = self.norm_out(h, scale=scale, shift=shift)
        else:
            h = self.norm_out(h, offset=modulation)
        h = ops.silu(h)
        if training and self.dropout > 0.0:
            h = replica.dropout(h, self.dropout, seed_generator)
        h = self.conv_out(h)
        x = self._resampled(x)
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.attention is not None:
            tokens = ops.reshape(self.norm_attention(x), (-1, x.shape[1] * x.shape[2], x.shape[3]))
            attended = ops.reshape(self.attention(tokens), (-1, *x.shape[1:]))
            x = (attended + x) * self.skip_scale
        return x

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        return (downsample if self.resample == "down" else upsample)(x, self.resample_filter)

    def get_config(self) -> dict:
        names = (
            "channels resample num_heads dropout adaptive_scale skip_scale project_skip "
            "resample_filter epsilon"
        )
        initializers = "initializer output_initializer attention_initializer"
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names.split()},
            **{
                name: keras.initializers.serialize(getattr(self, name))
                for name in initializers.split()
            },
        }


def embedding_dense(
    features: int,
    width: int,
    name: str,
    initializer: str | keras.initializers.Initializer = "glorot_uniform",
    use_bias: bool = True,
) -> keras.layers.Dense:
    """Returns a built dense layer for an embedding, float32 under every dtype policy."""
    layer = keras.layers.Dense(
        width, use_bias=use_bias, kernel_initializer=initializer, dtype="float32", name=name
    )
    layer.build((None, features))
    return layer

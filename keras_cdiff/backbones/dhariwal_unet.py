"""DhariwalUNet: the U-Net of ADM, as EDM trains it.

Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, section 3 and
appendix B; Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
2022, appendix F.
"""

from collections.abc import Sequence

import keras
from keras import ops

from keras_cdiff.backbones.layers import level_angles
from keras_cdiff.backbones.unet import UNet
from keras_cdiff.backbones.unet_layers import UNetBlock, embedding_dense
from keras_cdiff.common.checks import check_integer

Tensor = keras.KerasTensor


@keras.saving.register_keras_serializable("keras_cdiff")
class DhariwalUNet(UNet):
    """The U-Net of ADM: the embedding scales and shifts normed activations, attention has several
    heads.

    The embeddings of noise level, label and augmentation, and the output, are float32 under every
    dtype policy. At the start the output is exactly zero.

    Args:
        image_size: height and width of an image, divisible by two once a level after the first.
        channels: channels of an image.
        out_channels: channels of the output; None for `channels`.
        num_classes: number of classes; 0 for a network that takes no labels.
        label_dropout: probability in [0, 1) with which training replaces a label by the null label.
        augment_features: numbers by which an augmentation describes itself; 0 for none.
        width: channels where `channel_multipliers` is 1.
        channel_multipliers: each level's channels in units of `width`, finest level first.
        embedding_multiplier: width of the embedding in units of `width`.
        num_blocks: residual blocks of a level in the encoder; the decoder has one more.
        attention_resolutions: image sizes at which all blocks attend; those that no level has are
            without effect.
        middle_attention: whether a block between encoder and decoder attends.
        head_channels: channels of an attention head, at least: a level has
            channels // head_channels heads of equal size.
        dropout: probability in [0, 1) with which a block's activations are dropped in training.
        dtype: dtype or dtype policy of the computation.
        name: name of the network.
        trainable: whether the weights are trained.

    Call arguments, returns and raises: as for `SongUNet`.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 3,
        out_channels: int | None = None,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        augment_features: int = 0,
        width: int = 192,
        channel_multipliers: Sequence[int] = (1, 2, 3, 4),
        embedding_multiplier: int = 4,
        num_blocks: int = 3,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        middle_attention: bool = True,
        head_channels: int = 64,
        dropout: float = 0.1,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
        trainable: bool = True,
    ):
        super().__init__(
            image_size=image_size,
            channels=channels,
            out_channels=out_channels,
            num_classes=num_classes,
            label_dropout=label_dropout,
            augment_features=augment_features,
            width=width,
            channel_multipliers=channel_multipliers,
            embedding_multiplier=embedding_multiplier,
            num_blocks=num_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            dtype=dtype,
            name=name,
            trainable=trainable,
        )
        self.middle_attention = bool(middle_attention)
        self.head_channels = head_channels
        check_integer("head_channels", head_channels, 1)
        if width % 2:
            raise ValueError(
                f"`width` must be even: it is the number of sinusoids. Received: width={width}"
            )
        self.build()

    def build(self, input_shape: object = None) -> None:
        embedding_width = self.width * self.embedding_multiplier

        self.map_label = self.map_augment = None
        if self.augment_features:
            self.map_augment = embedding_dense(
                self.augment_features, self.width, "map_augment", "zeros", use_bias=False
            )
        self.map_hidden = embedding_dense(self.width, embedding_width, "map_hidden", _fan_in())
        self.map_output = embedding_dense(embedding_width, embedding_width, "map_output", _fan_in())
        if self.num_classes:
            # A label is a row with a single one: unit normal features, as of an embedding.
            normal = keras.initializers.RandomNormal(stddev=1.0)
            self.map_label = embedding_dense(
                self.num_classes, embedding_width, "map_label", normal, use_bias=False
            )
        self.build_levels(
            self.width * self.channel_multipliers[0],
            attend_in_decoder=[True] * (self.num_blocks + 1),
            epsilon=1e-5,
            initializer=_fan_in(),
            output_initializer="zeros",
        )

    def block(
        self, channels: int, name: str, attention: bool = False, resample: str | None = None
    ) -> UNetBlock:
        if name.startswith("middle"):
            attention = attention and self.middle_attention
        heads = channels // self.head_channels
        if attention and (heads == 0 or channels % heads):
            raise ValueError(
                f"A level that attends must fill a head of {self.head_channels} channels, or "
                "several of equal size: change `width`, `head_channels` or where attention is, "
                f"`attention_resolutions` and `middle_attention`. Received: {channels} channels"
            )
        return UNetBlock(
            channels,
            resample=resample,
            num_heads=heads if attention else 0,
            dropout=self.dropout,
            adaptive_scale=True,
            project_skip=False,
            epsilon=1e-5,
            initializer=_fan_in(),
            attention_initializer=_fan_in(),
            dtype=self.dtype_policy,
            name=name,
        )

    def embed(
        self, level: Tensor, label: Tensor | None, augment: Tensor | None, training: bool
    ) -> Tensor:
        level = ops.cast(level, "float32")
        embedding = self.embed_level(level)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment)
        embedding = self.map_output(ops.silu(self.map_hidden(embedding)))
        if self.map_label is not None:
            embedding = embedding + self.map_label(self.one_hot(label, level, training))
        return ops.silu(embedding)

    def embed_level(self, level: Tensor) -> Tensor:
        """Returns the sinusoids of the noise level (B,), (B, width) float32."""
        angles = level_angles(level, self.width // 2)
        return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)

    def get_config(self) -> dict:
        sizes = {"middle_attention": self.middle_attention, "head_channels": self.head_channels}
        return {**super().get_config(), **sizes}


def _fan_in() -> keras.initializers.Initializer:
    """Uniform on +-1 / sqrt(fan in), as PyTorch, and so ADM, initialises kernels; biases are zero
    here.
    """
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")

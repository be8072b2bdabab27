"""The U-Net that EDM's networks have in common: an encoder down the resolutions, a decoder back up.

`SongUNet` and `DhariwalUNet` choose its blocks and embed the noise level, the label and the
augmentation in their own ways.
"""

import abc
import math
from collections.abc import Sequence

import keras
from keras import ops

from keras_cdiff.backbones.backbone import check_inputs, check_wholes
from keras_cdiff.backbones.layers import TokenDense, drop_labels
from keras_cdiff.backbones.resampling import downsample, upsample
from keras_cdiff.backbones.unet_layers import GroupNorm, UNetBlock
from keras_cdiff.common.checks import check_integer

Tensor = keras.KerasTensor


class UNet(keras.Model):
    """Base of the U-Nets; a subclass gives `embed`, `block` and its sizes before `build_levels`.

    The levels halve the resolution. Each has `num_blocks` blocks in the encoder, one more in the
    decoder, and what the encoder's blocks put out is joined to what the decoder's take in.
    """

    # `SongUNet` also has an encoder with a second path of the shrinking image, "skip" or
    # "residual", and a decoder that makes the image level by level, "skip".
    encoder = decoder = "standard"
    resample_filter = (1, 1)

    def __init__(
        self,
        image_size: int,
        channels: int,
        out_channels: int | None,
        num_classes: int,
        label_dropout: float,
        augment_features: int,
        width: int,
        channel_multipliers: Sequence[int],
        embedding_multiplier: int,
        num_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float,
        dtype: str | keras.DTypePolicy | None,
        name: str | None,
        trainable: bool,
    ):
        # Keras would cast the noise level to the compute dtype; activations are cast by hand.
        super().__init__(autocast=False, dtype=dtype, name=name, trainable=trainable)
        self.image_size = image_size
        self.channels = channels
        self.out_channels = channels if out_channels is None else out_channels
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.augment_features = augment_features
        self.width = width
        self.channel_multipliers = channel_multipliers
        self.embedding_multiplier = embedding_multiplier
        self.num_blocks = num_blocks
        self.attention_resolutions = attention_resolutions
        self.dropout = dropout
        self._check_sizes()
        # Read from a configuration they are lists.
        self.channel_multipliers = tuple(channel_multipliers)
        self.attention_resolutions = tuple(attention_resolutions)
        # On PyTorch a dropout heeds only generators that were given a seed.
        self.seed_generator = keras.random.SeedGenerator(0)

    @abc.abstractmethod
    def embed(
        self, level: Tensor, label: Tensor | None, augment: Tensor | None, training: bool
    ) -> Tensor:
        """Returns the embedding of the conditions, (B, width embedding_multiplier) float32."""

    @abc.abstractmethod
    def block(
        self, channels: int, name: str, attention: bool = False, resample: str | None = None
    ) -> UNetBlock:
        """Returns an unbuilt block of this network's kind."""

    def build_levels(
        self,
        stem_channels: int,
        attend_in_decoder: Sequence[bool],
        epsilon: float,
        initializer: keras.initializers.Initializer,
        output_initializer: keras.initializers.Initializer,
    ) -> None:
        """Makes and builds all layers but those of the embedding.

        Args:
            stem_channels: channels after the first convolution.
            attend_in_decoder: for each of a level's num_blocks + 1 blocks in the decoder, whether
                it attends at the resolutions that do.
            epsilon: added to the variance in the norms of the output.
            initializer: of the kernels outside the blocks.
            output_initializer: of the kernels that make the image.
        """
        policy = self.dtype_policy
        embedding_shape = (None, self.width * self.embedding_multiplier)
        sizes = [self.image_size >> i for i in range(len(self.channel_multipliers))]
        widths = [self.width * multiplier for multiplier in self.channel_multipliers]

        def block(shape: tuple, channels: int, name: str, **kwargs: object) -> UNetBlock:
            layer = self.block(channels, name, **kwargs)
            layer.build(shape, embedding_shape)
            return layer

        def conv(size: int, channels_in: int, channels: int, name: str, **kwargs: object):
            layer = keras.layers.Conv2D(
                channels,
                3,
                dtype=policy,
                name=name,
                **{"padding": "same", "kernel_initializer": initializer, **kwargs},
            )
            layer.build((None, size, size, channels_in))
            return layer

        self.stem = conv(sizes[0], self.channels, stem_channels, "stem")
        self.down_blocks, self.encoder_blocks, self.side_layers = [], [], []
        channels, side_channels, skips = stem_channels, self.channels, [stem_channels]
        for i, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            if i > 0:
                shape = (None, sizes[i - 1], sizes[i - 1], channels)
                self.down_blocks.append(block(shape, channels, f"{size}_down", resample="down"))
                if self.encoder == "skip":
                    side = TokenDense(
                        channels, kernel_initializer=initializer, dtype=policy, name=f"{size}_side"
                    )
                    side.build((None, size, size, side_channels))
                    self.side_layers.append(side)
                elif self.encoder == "residual":
                    name = f"{size}_side"
                    self.side_layers.append(
                        conv(sizes[i - 1], side_channels, channels, name, padding="valid")
                    )
                    side_channels = channels
                skips.append(channels)
            attention = size in self.attention_resolutions
            blocks = []
            for j in range(self.num_blocks):
                name = f"{size}_encoder_{j}"
                blocks.append(block((None, size, size, channels), width, name, attention=attention))
                channels = width
                skips.append(channels)
            self.encoder_blocks.append(blocks)

        bottom = (None, sizes[-1], sizes[-1], channels)
        self.middle_blocks = [
            block(bottom, channels, "middle_0", attention=True),
            block(bottom, channels, "middle_1"),
        ]

        self.up_blocks, self.decoder_blocks = [], []
        self.output_norms, self.output_convs = [], []
        for i, (size, width) in reversed([*enumerate(zip(sizes, widths, strict=True))]):
            if i < len(sizes) - 1:
                shape = (None, sizes[i + 1], sizes[i + 1], channels)
                self.up_blocks.append(block(shape, channels, f"{size}_up", resample="up"))
            blocks = []
            for j, attends in enumerate(attend_in_decoder):
                shape = (None, size, size, channels + skips.pop())
                attention = attends and size in self.attention_resolutions
                blocks.append(block(shape, width, f"{size}_decoder_{j}", attention=attention))
                channels = width
            self.decoder_blocks.append(blocks)
            if self.decoder == "skip" or i == 0:
                norm = GroupNorm(epsilon, dtype=policy, name=f"{size}_output_norm")
                norm.build((None, size, size, channels))
                self.output_norms.append(norm)
                self.output_convs.append(
                    conv(
                        size,
                        channels,
                        self.out_channels,
                        f"{size}_output",
                        kernel_initializer=output_initializer,
                    )
                )

    def call(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        context: None = None,
        augment: Tensor | None = None,
        training: bool = False,
    ) -> Tensor:
        check_inputs(self, x, level, label)
        if context is not None:
            raise ValueError(
                "A U-Net takes no `context`: leave it out. "
                f"Received: context.shape={tuple(context.shape)}"
            )
        self._check_augment(augment)
        embedding = self.embed(level, label, augment, training)
        told = {
            "embedding": embedding,
            "seed_generator": self.seed_generator,
            "training": training,
        }
        x = side = ops.cast(x, self.compute_dtype)
        x = self.stem(x)
        skips = [x]
        for i, blocks in enumerate(self.encoder_blocks):
            if i > 0:
                x, side = self._join_side(self.down_blocks[i - 1](x, **told), side, i - 1)
                skips.append(x)
            for block in blocks:
                x = block(x, **told)
                skips.append(x)
        for block in self.middle_blocks:
            x = block(x, **told)
        image = None
        for i, blocks in enumerate(self.decoder_blocks):
            if i > 0:
                x = self.up_blocks[i - 1](x, **told)
            for block in blocks:
                x = block(ops.concatenate([x, skips.pop()], axis=-1), **told)
            image = self._add_to_image(image, x, i)
        return ops.cast(image, "float32")

    def _join_side(self, x: Tensor, side: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Joins the image's own path down the encoder, if there is one, to the blocks' path."""
        if self.encoder == "skip":
            side = downsample(side, self.resample_filter)
            return x + self.side_layers[index](side), side
        if self.encoder == "residual":
            # The border that the filter reaches into is convolved too.
            border = len(self.resample_filter) // 2
            wider = ops.pad(side, [(0, 0), (border, border), (border, border), (0, 0)])
            side = downsample(self.side_layers[index](wider), self.resample_filter, padded=True)
            x = (x + side) * math.sqrt(0.5)
            return x, x
        return x, side

    def _add_to_image(self, image: Tensor | None, x: Tensor, index: int) -> Tensor | None:
        """Adds a decoder level's part of the image; the standard decoder makes it at the last."""
        last = index == len(self.decoder_blocks) - 1
        if self.decoder == "standard":
            return self.output_convs[0](ops.silu(self.output_norms[0](x))) if last else None
        part = self.output_convs[index](ops.silu(self.output_norms[index](x)))
        return part if image is None else upsample(image, self.resample_filter) + part

    def one_hot(self, label: Tensor | None, level: Tensor, training: bool) -> Tensor:
        """Returns labels as rows (B, num_classes) with a one, or none for the null label."""
        if label is None:
            label = ops.full_like(level, self.num_classes, dtype="int32")
        elif training and self.label_dropout > 0:
            label = drop_labels(label, self.label_dropout, self.num_classes, self.seed_generator)
        # LiteRT's converter makes a comparison into a table without a row for the null label.
        distance = ops.cast(label, "int32")[:, None] - ops.arange(self.num_classes, dtype="int32")
        return ops.relu(1.0 - ops.cast(ops.abs(distance), "float32"))

    def _check_augment(self, augment: Tensor | None) -> None:
        if augment is None:
            return
        if self.augment_features == 0:
            raise ValueError(
                "This network takes no `augment`: build it with augment_features, or leave it out. "
                f"Received: augment.shape={tuple(augment.shape)}"
            )
        if len(augment.shape) != 2 or augment.shape[1] != self.augment_features:
            raise ValueError(
                f"`augment` must have the shape (batch, {self.augment_features}). "
                f"Received: augment.shape={tuple(augment.shape)}"
            )

    def _check_sizes(self) -> None:
        sizes = "image_size channels out_channels width embedding_multiplier num_blocks"
        for name in sizes.split():
            check_integer(name, getattr(self, name), 1)
        for name in ("num_classes", "augment_features"):
            check_integer(name, getattr(self, name), 0)
        check_wholes("channel_multipliers", self.channel_multipliers, 1)
        check_wholes("attention_resolutions", self.attention_resolutions, 0)
        levels = len(self.channel_multipliers)
        if self.image_size % 2 ** (levels - 1):
            raise ValueError(
                f"`image_size` must be a multiple of {2 ** (levels - 1)}, since {levels} levels "
                f"halve it. Received: image_size={self.image_size}"
            )
        for name in ("dropout", "label_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"`{name}` must lie in [0, 1). Received: {name}={getattr(self, name)}"
                )

    def get_config(self) -> dict:
        names = (
            "image_size channels out_channels num_classes label_dropout augment_features width "
            "channel_multipliers embedding_multiplier num_blocks attention_resolutions dropout"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}

"""SongUNet: the U-Nets DDPM++ and NCSN++ of score-based models, as EDM trains them.

Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
2021, appendix H; Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models", 2022, appendix F.
"""

import math
from collections.abc import Sequence

import keras
from keras import ops

from keras_cdiff.backbones.layers import level_angles
from keras_cdiff.backbones.unet import UNet
from keras_cdiff.backbones.unet_layers import UNetBlock, embedding_dense
from keras_cdiff.common.checks import check_integer

Tensor = keras.KerasTensor

_FOURIER_SCALE = 16.0


@keras.saving.register_keras_serializable("keras_cdiff")
class SongUNet(UNet):
    """The U-Net of score-based models: DDPM++ by default, NCSN++ by other settings.

    NCSN++ is embedding="fourier", noise_multiplier=2, encoder="residual" and
    resample_filter=(1, 3, 3, 1). The embeddings of noise level, label and augmentation, and the
    output, are float32 under every dtype policy. At the start the output is almost zero.

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
        attention_resolutions: image sizes at which blocks attend; those that no level has are
            without effect. In the decoder the last block of a level attends; between encoder and
            decoder one block always does.
        dropout: probability in [0, 1) with which a block's activations are dropped in training.
        adaptive_scale: whether the embedding scales and shifts normed activations, as in ADM, or is
            added before the norm.
        embedding: "positional" or "fourier" (random frequencies, of standard deviation 16).
        noise_multiplier: width of the noise level's features in units of `width`.
        encoder: "standard"; with a second path of the shrinking image, "skip" adds it to each
            level, and "residual" convolves it on the way.
        decoder: "standard" makes the image at the end; "skip" makes it level by level.
        resample_filter: symmetric taps of even length for changes of resolution.
        dtype: dtype or dtype policy of the computation.
        name: name of the network.
        trainable: whether the weights are trained.

    Call arguments:
        x: (B, H, W, C) noisy images, float.
        level: (B,) the network's input for the noise level, c_noise.
        label: (B,) int class labels; `num_classes` is the null label, and None stands for it. Any
            other number counts as the null label too: it cannot be refused in a compiled step.
        context: must be None.
        augment: (B, augment_features) parameters of the augmentation; None stands for zeros, an
            image as it is.
        training: whether dropout is active.

    Returns:
        (B, H, W, out_channels) float32.

    Raises:
        ValueError: if sizes do not fit each other, or an input does not fit the network.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 3,
        out_channels: int | None = None,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        augment_features: int = 0,
        width: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 2),
        embedding_multiplier: int = 4,
        num_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        adaptive_scale: bool = False,
        embedding: str = "positional",
        noise_multiplier: int = 1,
        encoder: str = "standard",
        decoder: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
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
        self.adaptive_scale = adaptive_scale
        self.embedding = embedding
        self.noise_multiplier = noise_multiplier
        self.encoder = encoder
        self.decoder = decoder
        self.resample_filter = resample_filter
        self._check_choices()
        self.resample_filter = tuple(resample_filter)
        self.build()

    def build(self, input_shape: object = None) -> None:
        noise_width = self.width * self.noise_multiplier
        embedding_width = self.width * self.embedding_multiplier

        self.frequencies = self.map_label = self.map_augment = None
        if self.embedding == "fourier":
            self.frequencies = self.add_weight(
                name="frequencies",
                shape=(noise_width // 2,),
                initializer=keras.initializers.RandomNormal(stddev=_FOURIER_SCALE),
                dtype="float32",
                trainable=False,
                autocast=False,
            )
        if self.num_classes:
            self.map_label = embedding_dense(self.num_classes, noise_width, "map_label")
        if self.augment_features:
            self.map_augment = embedding_dense(
                self.augment_features, noise_width, "map_augment", use_bias=False
            )
        self.map_hidden = embedding_dense(noise_width, embedding_width, "map_hidden")
        self.map_output = embedding_dense(embedding_width, embedding_width, "map_output")
        self.build_levels(
            self.width,
            attend_in_decoder=[False] * self.num_blocks + [True],
            epsilon=1e-6,
            initializer=_glorot(1.0),
            output_initializer=_glorot(1e-10),
        )

    def block(
        self, channels: int, name: str, attention: bool = False, resample: str | None = None
    ) -> UNetBlock:
        return UNetBlock(
            channels,
            resample=resample,
            num_heads=1 if attention else 0,
            dropout=self.dropout,
            adaptive_scale=self.adaptive_scale,
            skip_scale=math.sqrt(0.5),
            resample_filter=self.resample_filter,
            output_initializer=_glorot(1e-10),
            attention_initializer=_glorot(0.2),
            dtype=self.dtype_policy,
            name=name,
        )

    def embed(
        self, level: Tensor, label: Tensor | None, augment: Tensor | None, training: bool
    ) -> Tensor:
        level = ops.cast(level, "float32")
        embedding = self.embed_level(level)
        if self.map_label is not None:
            rows = self.one_hot(label, level, training) * math.sqrt(self.num_classes)
            embedding = embedding + self.map_label(rows)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment)
        return ops.silu(self.map_output(ops.silu(self.map_hidden(embedding))))

    def embed_level(self, level: Tensor) -> Tensor:
        """Returns the sinusoids of the noise level (B,), (B, width noise_multiplier) float32."""
        if self.frequencies is not None:
            angles = level[:, None] * (2.0 * math.pi * ops.convert_to_tensor(self.frequencies))
        else:
            angles = level_angles(level, self.width * self.noise_multiplier // 2, endpoint=True)
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def _check_choices(self) -> None:
        for name, choices in (
            ("embedding", ("positional", "fourier")),
            ("encoder", ("standard", "skip", "residual")),
            ("decoder", ("standard", "skip")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {choices}. Received: {name}={getattr(self, name)!r}"
                )
        check_integer("noise_multiplier", self.noise_multiplier, 1)
        features = self.width * self.noise_multiplier
        if features % 2 or features < 4:
            raise ValueError(
                "The noise level needs an even number of features of at least 4, width times "
                f"noise_multiplier. Received: width={self.width}, "
                f"noise_multiplier={self.noise_multiplier}"
            )
        taps = self.resample_filter
        sequence = isinstance(taps, list | tuple) and len(taps) >= 2 and len(taps) % 2 == 0
        if not sequence or list(taps) != list(taps)[::-1] or not 0.0 < sum(taps) < math.inf:
            raise ValueError(
                "`resample_filter` must be symmetric, of even length and of positive sum, such as "
                f"(1, 1) or (1, 3, 3, 1). Received: resample_filter={taps}"
            )

    def get_config(self) -> dict:
        names = "adaptive_scale embedding noise_multiplier encoder decoder resample_filter"
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


def _glorot(scale: float) -> keras.initializers.Initializer:
    """Glorot's uniform initialisation, its variance multiplied by `scale`."""
    return keras.initializers.VarianceScaling(scale, mode="fan_avg", distribution="uniform")

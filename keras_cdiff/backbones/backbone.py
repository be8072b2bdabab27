"""What a model needs of its network, and checks of what a network is built and called with."""

import dataclasses
import inspect
from typing import Protocol

import keras

from keras_cdiff.common.checks import is_integer

Tensor = keras.KerasTensor


class Backbone(Protocol):
    """The network of a `DiffusionModel`: a `keras.Model` that is built when it is made.

    Attributes:
        image_size: height and width of an image, >= 1.
        channels: channels of an image, C >= 1.
        out_channels: channels of the output: C, or 2 C with a learned variance.
        num_classes: number of classes, 0 if it takes no labels.

    Optional attributes:
        label_dropout: how often training replaces a label by the null label; 0 for never.
        context_width: features of a context's rows, 0 if it takes no context.
        context_dropout: how often training replaces a context by the null context; 0 for never.
        augment_features: 9 if its `call` takes `augment`, (B, 9), what an augmentation did.
        seed_generator: the `keras.random.SeedGenerator` of its dropout, which a step sets.
        prefers_xla: the `jit_compile` that suits it on TensorFlow.
        is_latent: whether images are latents, whose units only their encoder knows, and not grey or
            RGB; if the network does not say it, those of 1 or 3 channels are no latents.
    """

    image_size: int
    channels: int
    out_channels: int
    num_classes: int

    def call(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        training: bool = False,
    ) -> Tensor:
        """Returns float32 (B, H, W, out_channels).

        Args:
            x: (B, H, W, C), noisy images times c_in.
            level: (B,), c_noise.
            label: (B,) integers; None or `num_classes` for no class.
            context: (B, L, D), rows of zeros being padding, or None.
            training: whether dropout is active.
        """

    def get_config(self) -> dict:
        """Returns the arguments that make such a network anew, for the copies that averages are."""


def holds_latents(channels: int) -> bool:
    """Returns whether images of so many channels are taken for latents, if nothing else says so."""
    return channels not in (1, 3)


@dataclasses.dataclass(frozen=True)
class NetworkInputs:
    """What a network takes: images, and the conditions on which it predicts.

    Attributes:
        image_shape: (H, W, C).
        is_latent: whether images are latents.
        num_classes: number of classes; 0 if it takes no labels.
        null_label: the label that stands for no class; None if the network has not learned one.
        context_width: features of a context's rows, 0 if it takes no context; None if the network
            does not say.
        learns_null_context: whether training drops contexts now and then, so that guidance by
            context is defined.
    """

    image_shape: tuple[int, int, int]
    is_latent: bool
    num_classes: int
    null_label: int | None
    context_width: int | None
    learns_null_context: bool

    @classmethod
    def of(cls, network: "Backbone") -> "NetworkInputs":
        """Returns what a network says of itself."""
        size, channels, num_classes = network.image_size, network.channels, network.num_classes
        learned = num_classes and getattr(network, "label_dropout", None) != 0
        return cls(
            image_shape=(size, size, channels),
            is_latent=getattr(network, "is_latent", holds_latents(channels)),
            num_classes=num_classes,
            null_label=num_classes if learned else None,
            context_width=getattr(network, "context_width", None),
            learns_null_context=getattr(network, "context_dropout", None) != 0,
        )

    @property
    def can_be_guided(self) -> bool:
        """Whether there are conditions, and the network has learned the null one of each."""
        null = [self.null_label is not None] if self.num_classes else []
        null += [self.learns_null_context] if self.context_width else []
        return bool(null) and all(null)


def check_backbone(backbone: object, augmented: bool = False) -> None:
    """Raises a ValueError that names all that a network lacks to be a `Backbone`.

    Args:
        backbone: the network.
        augmented: whether it is called with `augment`, too.
    """
    missing = []
    if not isinstance(backbone, keras.Model):
        missing.append("it must be a keras.Model")
    for name, least in (
        ("image_size", 1),
        ("channels", 1),
        ("out_channels", 1),
        ("num_classes", 0),
    ):
        value = getattr(backbone, name, None)
        if not is_integer(value) or value < least:
            missing.append(f"its `{name}` must be an integer of at least {least}")
    parameters = inspect.signature(getattr(backbone, "call", lambda: None)).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        wanted = ["label", "context", "training", *(["augment"] if augmented else [])]
        absent = [name for name in wanted if name not in parameters]
        if absent:
            missing.append(f"its `call` must take {', '.join(absent)}")
    if not getattr(backbone, "built", False):
        missing.append("it must be built when it is made, as by self.built = True in its __init__")
    if missing:
        raise ValueError(
            "`backbone` must be a network as keras_cdiff.backbones.backbone.Backbone describes it: "
            f"{'; '.join(missing)}. Received: backbone={backbone!r}"
        )


def check_inputs(
    network: keras.Model,
    x: Tensor,
    level: Tensor,
    label: Tensor | None,
    context: Tensor | None = None,
) -> None:
    """Raises a ValueError unless the inputs fit the network.

    Args:
        network: a backbone; its image_size, channels, num_classes and context_width decide.
        x: (B, H, W, C) float.
        level: (B,).
        label: (B,) int, or None.
        context: (B, L, D) float, or None.
    """
    if context is not None:
        check_context(
            tuple(context.shape),
            keras.backend.standardize_dtype(context.dtype),
            network.context_width,
        )
    expected = (network.image_size, network.image_size, network.channels)
    if len(x.shape) != 4 or tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"`x` must have the shape (batch, {', '.join(map(str, expected))}), channels last. "
            f"Received: x.shape={tuple(x.shape)}"
        )
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "`x` must be of a float dtype, scaled to [-1, 1], for instance by images / 127.5 - 1 "
            f"from uint8. Received: x.dtype={dtype}"
        )
    if len(level.shape) != 1:
        raise ValueError(
            "`level` must have the shape (batch,), one noise level for each image. "
            f"Received: level.shape={tuple(level.shape)}"
        )
    if label is None:
        return
    if network.num_classes == 0:
        raise ValueError(
            "This network takes no labels: build it with num_classes, or leave `label` out. "
            f"Received: label.shape={tuple(label.shape)}"
        )
    dtype = keras.backend.standardize_dtype(label.dtype)
    if len(label.shape) != 1 or "int" not in dtype:
        raise ValueError(
            f"`label` must be integers (batch,) in 0..{network.num_classes - 1}, or the null label "
            f"{network.num_classes}. "
            f"Received: label.shape={tuple(label.shape)}, label.dtype={dtype}"
        )


def check_context(shape: tuple, dtype: str, context_width: int) -> None:
    """Raises a ValueError unless a context of that shape and dtype fits a network.

    Args:
        shape: that of the context, None for sizes that are not known.
        dtype: its dtype.
        context_width: features of a row that the network takes; 0 if it takes no context.
    """
    if context_width == 0:
        raise ValueError(
            "This network takes no context: build a DiT with context_width, or leave `context` "
            f"out. Received: context.shape={shape}"
        )
    if len(shape) != 3 or shape[2] != context_width or "float" not in dtype:
        raise ValueError(
            f"`context` must be floats (batch, length, {context_width}), rows of zeros being "
            f"padding. Received: context.shape={shape}, context.dtype={dtype}"
        )


def check_wholes(name: str, values: object, fewest: int) -> None:
    """Raises a ValueError unless `values` are integers of at least 1, and `fewest` or more."""
    sequence = isinstance(values, list | tuple) and len(values) >= fewest
    if not sequence or not all(is_integer(v) and v >= 1 for v in values):
        raise ValueError(
            f"`{name}` must be a list of {fewest} or more positive integers. "
            f"Received: {name}={values!r}"
        )

"""Extractors: networks that turn images into features, and how a string names one."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.batch_function import PREFERS_JIT, BatchFunction
from keras_cdiff.evaluation.features.architecture import architecture
from keras_cdiff.evaluation.features.inception import INCEPTION_INPUT, inception_network
from keras_cdiff.evaluation.features.mobilenet_v2 import IMAGENET_INPUT, mobilenet_v2_network
from keras_cdiff.evaluation.features.resize import check_mode, resize, resize_image
from keras_cdiff.weights import fetch, read_state_dict, weights_version

Weights = str | os.PathLike | Mapping[str, np.ndarray] | None


class Extractor:
    """Turns uint8 images into features: resize, normalisation and network in one compiled graph.

    The network sees scale * x + offset in float32, whatever the global dtype policy, with x the
    resized pixels in [0, 255].

    Args:
        network: a `keras.Model` from images (B, H, W, C) to features (B, D), or to features and
            logits (B, K).
        name: what the extractor is called in results.
        version: what tells the network from others of its name: a digest of its weights, and of
            whatever else the name does not tell.
        image_size: height and width to which images are resized; None takes them as they come.
        resize: one of `keras_cdiff.evaluation.features.resize.MODES`.
        scale: number, or one for each channel.
        offset: number, or one for each channel.

    Attributes:
        feature_width: D.
        num_logits: K, or 0 if the network gives no logits.
        channels: C, 3 or 1.

    Raises:
        ValueError: if the resize mode is unknown, or the network is not as described.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        name: str,
        version: str,
        image_size: tuple[int, int] | None = None,
        resize: str = "clean",
        scale: float | np.ndarray = 1.0,
        offset: float | np.ndarray = 0.0,
    ):
        check_mode(resize)
        self.name, self.version, self.resize = name, version, resize
        self.image_size = None if image_size is None else tuple(int(n) for n in image_size)
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(
                "The image size must be a positive height and width, or None. "
                f"Received: image_size={image_size}"
            )
        self.channels = input_shape(network)[-1] or 3
        self._network, self._scale, self._offset = network, scale, offset
        self.feature_width, self.num_logits = self._output_widths()
        self._outputs = BatchFunction(self._compute, network, jit_compile=PREFERS_JIT)

    def __call__(
        self, images: np.ndarray | Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the features of a batch of images, and its logits.

        Args:
            images: uint8 (B, H, W, C), or a sequence of B images (H, W, C), which are resized one
                by one if they differ in size. One channel is repeated where the network takes
                three.

        Returns:
            float32 features (B, feature_width), and float32 logits (B, num_logits) or None.

        Raises:
            ValueError: if the images are of another type, rank or number of channels.
        """
        images = self._stacked(images)
        outputs = self._outputs(images)
        return outputs[0], outputs[1] if self.num_logits else None

    def describe(self) -> dict:
        """Returns what a result says of its extractor, as a dict for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "feature_width": self.feature_width,
            "num_logits": self.num_logits,
            "image_size": None if self.image_size is None else list(self.image_size),
            "resize": self.resize,
        }

    def __repr__(self) -> str:
        return f"Extractor({self.name!r}, version={self.version!r}, resize={self.resize!r})"

    def prepare(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Returns what the network sees of images (B, H, W, 1 or C), in float32."""
        images = resize(images, self.image_size or images.shape[1:3], self.resize)
        if images.shape[-1] != self.channels:
            images = ops.repeat(images, self.channels, axis=-1)
        return images * ops.cast(self._scale, "float32") + ops.cast(self._offset, "float32")

    def _compute(self, images: keras.KerasTensor) -> list[keras.KerasTensor]:
        outputs = self._network(self.prepare(images), training=False)
        return [ops.cast(output, "float32") for output in keras.tree.flatten(outputs)]

    def _stacked(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """One checked array: uint8, or float32 of images that had to be resized here."""
        if isinstance(images, np.ndarray) or len({np.shape(image) for image in images}) <= 1:
            return self._checked(images)
        for image in images:
            self._checked(np.asarray(image)[None])
        if self.image_size is None:
            raise ValueError(
                f"{self.name} does not resize, so all images must have one size: give from_model "
                "an image_size. Received: images of shapes "
                f"{', '.join(map(str, sorted({image.shape for image in images})))}"
            )
        resized = [resize_image(image, self.image_size, self.resize) for image in images]
        return np.stack([np.broadcast_to(r, (*r.shape[:2], self.channels)) for r in resized])

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        channels = {1, self.channels}
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.size == 0
            or images.shape[-1] not in channels
        ):
            raise ValueError(
                f"{self.name} takes uint8 images (B, H, W, C), at least one, C being "
                f"{' or '.join(map(str, sorted(channels)))}; convert floats in [-1, 1] with "
                "keras_cdiff.data.to_uint8, and lay RGBA over a colour. "
                f"Received: images of shape {images.shape}, dtype {images.dtype}"
            )
        return images

    def _output_widths(self) -> tuple[int, int]:
        """The widths of features and logits, found without computing them."""
        shape = input_shape(self._network)
        height, width = self.image_size or (None, None)
        probe = keras.KerasTensor((None, height, width, self.channels), "float32")
        try:
            outputs = keras.tree.flatten(self._network(probe, training=False))
        except Exception as error:  # whatever the network raises when images do not suit it
            raise ValueError(
                f"The network must take float32 images {probe.shape}; give from_model the "
                f"image_size that it needs. Received: a network {self.name!r} of input shape "
                f"{shape}, which says: {error}"
            ) from error
        shapes = [tuple(output.shape) for output in outputs]
        if len(shapes) not in (1, 2) or any(len(s) != 2 or not s[1] for s in shapes):
            raise ValueError(
                "The network must give features (B, D), or features and logits (B, K); end it with "
                "a GlobalAveragePooling2D or a Flatten. "
                f"Received: a network {self.name!r} of output shapes {shapes}"
            )
        return shapes[0][1], shapes[1][1] if len(shapes) == 2 else 0


def input_shape(model: keras.Model) -> tuple[int | None, ...]:
    """The shape (B, H, W, C) that a model states for its input, None where it leaves it open."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return (None,) * 4
    shape = tuple(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or shape[-1] not in (None, 1, 3):
        raise ValueError(
            "An extractor's network takes one batch of images (B, H, W, C), C being 3 or 1. "
            f"Received: a network {model.name!r} of inputs {[tuple(i.shape) for i in inputs]}"
        )
    return shape


def from_model(
    model: keras.Model,
    name: str | None = None,
    image_size: tuple[int, int] | int | None = None,
    value_range: tuple[float, float] = (0.0, 255.0),
    resize: str = "clean",
) -> Extractor:
    """Returns the extractor that a Keras model is.

    Make it when the model is trained: its version is that of the weights at this moment, of the
    architecture and of the value range.

    Args:
        model: from float images (B, H, W, C), C being 3 or 1, to features (B, D), or to features
            and logits (B, K).
        name: what it is called in results; by default the model's name, without the number that
            Keras adds to a name that was not given.
        image_size: height and width of the images that the model takes, or one number for both; by
            default those of the model's input, and where it leaves them open no resize.
        value_range: what 0 and 255 become before the model sees them.
        resize: one of `keras_cdiff.evaluation.features.resize.MODES`.

    Raises:
        ValueError: if the model gives no features of the shape above, or an argument is wrong.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"An extractor is made from a keras.Model. Received: model={model!r}")
    low, high = value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            "The value range must be two finite numbers, the lower first. "
            f"Received: value_range={value_range}"
        )
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if image_size is None:
        height, width = input_shape(model)[1:3]
        image_size = (height, width) if height and width else None
    extractor = Extractor(
        model,
        name=name or _name(model),
        version="",
        image_size=image_size,
        resize=resize,
        scale=(high - low) / 255,
        offset=low,
    )
    # Only now has every model its weights. Their names count what was built before: leave them out.
    weights = {str(i): ops.convert_to_numpy(weight) for i, weight in enumerate(model.weights)}
    facts = (
        architecture(model),
        weights_version(weights),
        [float(low), float(high)],
        [extractor.channels, extractor.feature_width, extractor.num_logits],
    )
    extractor.version = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return extractor


def _name(model: keras.Model) -> str:
    """The model's name, without the number that Keras adds to a name of its own making."""
    stem = re.sub(r"_\d+$", "", model.name)
    ours = stem.replace("_", "") != type(model).__name__.lower()
    return model.name if ours else stem


def inception(weights: Weights = None, resize: str = "clean") -> Extractor:
    """Returns the extractor of the Fréchet inception distance: 2048 features and 1008 logits.

    Args:
        weights: a file of weights under PyTorch's names, or its state dict; see
            `inception_network` and `read_state_dict`. None fetches those of pytorch-fid once.
        resize: how images become 299 x 299, one of `MODES`.

    Raises:
        ValueError: if the weights cannot be had, or are another network's.
    """
    check_mode(resize)
    network, taken = inception_network(_state_dict(weights, "inception"))
    return Extractor(
        network,
        name="inception",
        version=weights_version(taken),
        resize=resize,
        **INCEPTION_INPUT,
    )


def mobilenet_v2(
    weights: Weights = None, resize: str = "clean", image_size: int = 224
) -> Extractor:
    """Returns torchvision's ImageNet MobileNetV2: 1280 features and 1000 logits.

    Args:
        weights: a file of weights under PyTorch's names, or its state dict; see
            `mobilenet_v2_network` and `read_state_dict`. None fetches those of torchvision once.
        resize: one of `MODES`.
        image_size: height and width to which images are resized, at least 32. The network was
            trained at 224; smaller is faster, and another extractor.

    Raises:
        ValueError: if the weights cannot be had, or are another network's.
    """
    check_mode(resize)
    if image_size < 32:
        raise ValueError(
            "MobileNetV2 needs images of at least 32 pixels, of which it makes one position. "
            f"Received: image_size={image_size}"
        )
    state_dict = _state_dict(weights, "mobilenet_v2")
    network, taken = mobilenet_v2_network(state_dict)
    return Extractor(
        network,
        name="mobilenet_v2",
        version=weights_version(taken),
        image_size=(image_size, image_size),
        resize=resize,
        **IMAGENET_INPUT,
    )


def open_extractor(spec: str = "inception", resize: str = "clean") -> Extractor:
    """Opens the extractor that a string names.

    `inception[:PATH]`: see `inception`; PATH is a file of weights.
    `mobilenet_v2[:PATH][@SIZE]`: see `mobilenet_v2`; SIZE is the image size, 224 by default.
    `keras:PATH[@SIZE]`: a model saved by Keras, see `from_model`, of images in [0, 255].

    Args:
        spec: the extractor, in one of the forms above.
        resize: one of `MODES`.

    Raises:
        ValueError: if the string has another form, or the file cannot be read.
    """
    match = re.fullmatch(r"(inception|mobilenet_v2|keras)(?::(.+?))?(?:@(\d+))?", str(spec))
    kind, path, size = match.groups() if match else (None, None, None)
    if not match or (kind == "keras" and path is None) or (kind == "inception" and size):
        raise ValueError(
            "An extractor is inception[:PATH], mobilenet_v2[:PATH][@SIZE] or keras:PATH[@SIZE]. "
            f"Received: extractor={spec!r}"
        )
    if kind == "inception":
        return inception(path, resize)
    if kind == "mobilenet_v2":
        return mobilenet_v2(path, resize, int(size or 224))
    try:
        model = keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(
            "The extractor must be a model saved by Keras (.keras), its own classes imported "
            f"before. Received: extractor={spec!r} ({error})"
        ) from error
    return from_model(model, image_size=int(size) if size else None, resize=resize)


def _state_dict(weights: Weights, published: str) -> Mapping[str, np.ndarray]:
    if isinstance(weights, Mapping):
        return weights
    return read_state_dict(fetch(published) if weights is None else weights)

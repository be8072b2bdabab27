"""The extractors that there are, and how a string names one.

A distance between sets of images means something only beside the name and the version of its
extractor, the resize before it and the number of images. An `Extractor` carries the first three.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_cdiff.evaluation.features.architecture import architecture
from keras_cdiff.evaluation.features.extractor import Extractor, input_shape
from keras_cdiff.evaluation.features.inception import INCEPTION_INPUT, inception_network
from keras_cdiff.evaluation.features.mobilenet_v2 import IMAGENET_INPUT, mobilenet_v2_network
from keras_cdiff.evaluation.features.resize import check_mode
from keras_cdiff.weights import fetch, read_state_dict, weights_version

Weights = str | os.PathLike | Mapping[str, np.ndarray] | None


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
        image_size: height and width of the images that the model takes, or one number for both.
            By default that of the model's input; where the input leaves it open, images are not
            resized.
        value_range: what 0 and 255 become before the model sees them.
        resize: "clean", "legacy_tensorflow" or "legacy_pytorch".

    Returns:
        The extractor.

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
        resize: how images become 299 x 299: "clean", "legacy_tensorflow" or "legacy_pytorch".

    Returns:
        The extractor.

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
        resize: "clean", "legacy_tensorflow" or "legacy_pytorch".
        image_size: height and width to which images are resized, at least 32. The network was
            trained at 224; smaller is faster, and another extractor.

    Returns:
        The extractor.

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
        resize: "clean", "legacy_tensorflow" or "legacy_pytorch".

    Returns:
        The extractor.

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

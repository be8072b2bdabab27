"""The ImageNet MobileNetV2 of torchvision: a small extractor, for where Inception is too slow.

Distances between its features are not FID: name the extractor.
"""

from collections.abc import Mapping

import keras
import numpy as np
from keras import layers, ops

from keras_cdiff.evaluation.features.folded_convolutions import FoldedConvolutions

Tensor = keras.KerasTensor

# The images that it was trained on, in RGB / 255.
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
IMAGENET_INPUT = {"scale": 1 / (255 * STD), "offset": -MEAN / STD}

# Expansion, filters, blocks, strides of the first block: table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2_network(
    state_dict: Mapping[str, np.ndarray],
) -> tuple[keras.Model, dict[str, np.ndarray]]:
    """Returns the network, and the entries of the state dict that it took.

    Its batch normalisations (epsilon 1e-5) are folded into the convolutions.

    Args:
        state_dict: torchvision's names ("features.0.0.weight", ..., "classifier.1.bias") to arrays
            in PyTorch's layouts.

    Returns:
        The model from images (B, H, W, 3), (x / 255 - mean) / std with x in [0, 255] and
        ImageNet's mean and std, trained at 224 x 224, to features (B, 1280), the mean over
        positions, and logits (B, 1000); and the entries taken.

    Raises:
        ValueError: if the state dict is another network's.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018).
    """
    convolutions = FoldedConvolutions(epsilon=1e-5)
    inputs = keras.Input((None, None, 3), dtype="float32")
    x = ops.relu6(convolutions(inputs, "features.0.0", "features.0.1", 32, 3, strides=2))
    index = 1
    for expansion, filters, blocks, strides in STAGES:
        for block in range(blocks):
            name = f"features.{index}.conv"
            x = _block(convolutions, x, name, expansion, filters, strides if block == 0 else 1)
            index += 1
    x = ops.relu6(convolutions(x, f"features.{index}.0", f"features.{index}.1", 1280, 1))
    features = layers.GlobalAveragePooling2D("channels_last", dtype="float32")(x)
    logits = convolutions.dense(features, "classifier.1", 1000)
    model = keras.Model(inputs, [features, logits], name="mobilenet_v2")
    return model, convolutions.load(state_dict, "torchvision's mobilenet_v2")


def _block(
    convolutions: FoldedConvolutions,
    x: Tensor,
    name: str,
    expansion: int,
    filters: int,
    strides: int,
) -> Tensor:
    """An inverted residual: expansion, depthwise convolution, linear projection."""
    width, shortcut, position = x.shape[-1], x, 0
    if expansion > 1:
        names = f"{name}.0.0", f"{name}.0.1"
        x = ops.relu6(convolutions(x, *names, expansion * width, 1))
        position = 1
    names = f"{name}.{position}.0", f"{name}.{position}.1"
    x = ops.relu6(convolutions(x, *names, None, 3, strides=strides))
    names = f"{name}.{position + 1}", f"{name}.{position + 2}"
    x = convolutions(x, *names, filters, 1)
    return shortcut + x if strides == 1 and width == filters else x

"""The Inception-v3 of the Fréchet inception distance, with the quirks of its weights.

The weights are those of TensorFlow's graph of 2015-12-05, converted to PyTorch's names by
pytorch-fid. They were trained with TensorFlow's average pooling, which leaves the border out of the
mean, and the graph has a max pooling in its last block where the paper has an average pooling.
Both belong to the network: features computed otherwise give other distances.
"""

from collections.abc import Callable, Mapping

import keras
import numpy as np
from keras import layers

from keras_cdiff.evaluation.features.folded_convolutions import FoldedConvolutions

Tensor = keras.KerasTensor

# The 2015 graph computes (x - 128) / 128. pytorch-fid computes 2 x / 255 - 1 instead, which puts
# white at 1 and not at 127 / 128: its distances are not quite those of the graph.
INCEPTION_INPUT = {"image_size": (299, 299), "scale": 1 / 128, "offset": -1.0}


def inception_network(
    state_dict: Mapping[str, np.ndarray],
) -> tuple[keras.Model, dict[str, np.ndarray]]:
    """Returns the network, and the entries of the state dict that it took.

    Its batch normalisations (epsilon 1e-3) are folded into the convolutions. Its 1008 logits leave
    out the bias, as Inception Scores do since the code of Salimans et al., "Improved Techniques for
    Training GANs" (2016).

    Args:
        state_dict: PyTorch's names ("Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn.running_mean",
            ..., "fc.weight") to arrays in PyTorch's layouts; "fc.bias" is not used.

    Returns:
        The model from images (B, H, W, 3), (x - 128) / 128 with x in [0, 255], 299 x 299 for
        distances and at least 75 x 75, to features (B, 2048), the mean over positions of the last
        block, and logits (B, 1008); and the entries taken.

    Raises:
        ValueError: if the state dict is another network's.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2015);
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium" (2017).
    """
    unit = _Units()
    inputs = keras.Input((None, None, 3), dtype="float32")

    x = unit(inputs, "Conv2d_1a_3x3", 32, 3, strides=2, padding="valid")
    x = unit(x, "Conv2d_2a_3x3", 32, 3, padding="valid")
    x = unit(x, "Conv2d_2b_3x3", 64, 3)
    x = _max_pool(x, strides=2)
    x = unit(x, "Conv2d_3b_1x1", 80, 1)
    x = unit(x, "Conv2d_4a_3x3", 192, 3, padding="valid")
    x = _max_pool(x, strides=2)

    x = _block_a(unit, x, "Mixed_5b", 32)
    x = _block_a(unit, x, "Mixed_5c", 64)
    x = _block_a(unit, x, "Mixed_5d", 64)
    x = _block_b(unit, x, "Mixed_6a")
    x = _block_c(unit, x, "Mixed_6b", 128)
    x = _block_c(unit, x, "Mixed_6c", 160)
    x = _block_c(unit, x, "Mixed_6d", 160)
    x = _block_c(unit, x, "Mixed_6e", 192)
    x = _block_d(unit, x, "Mixed_7a")
    x = _block_e(unit, x, "Mixed_7b", _average_pool)
    x = _block_e(unit, x, "Mixed_7c", _max_pool)

    features = layers.GlobalAveragePooling2D("channels_last", dtype="float32")(x)
    logits = unit.convolutions.dense(features, "fc", 1008, use_bias=False)
    model = keras.Model(inputs, [features, logits], name="inception")
    taken = unit.convolutions.load(
        state_dict, "the FID Inception-v3 (2015-12-05) of pytorch-fid", unused=["fc.bias"]
    )
    return model, taken


class _Units:
    """Adds convolution, batch normalisation and ReLU, and chains of them."""

    def __init__(self):
        self.convolutions = FoldedConvolutions(epsilon=1e-3)

    def __call__(
        self, x: Tensor, name: str, filters: int, kernel_size: int | tuple[int, int], **options
    ) -> Tensor:
        names = f"{name}.conv", f"{name}.bn"
        return keras.ops.relu(self.convolutions(x, *names, filters, kernel_size, **options))

    def chain(self, x: Tensor, name: str, *steps: tuple, last: dict | None = None) -> Tensor:
        """Returns x after units called name_1, name_2, ..., each given by filters and kernel size;
        the last takes the options `last`."""
        for number, step in enumerate(steps, start=1):
            options = (last or {}) if number == len(steps) else {}
            x = self(x, f"{name}_{number}", *step, **options)
        return x


REDUCING = {"strides": 2, "padding": "valid"}


def _block_a(unit: _Units, x: Tensor, name: str, pool_filters: int) -> Tensor:
    return _concatenate(
        unit(x, f"{name}.branch1x1", 64, 1),
        unit.chain(x, f"{name}.branch5x5", (48, 1), (64, 5)),
        unit.chain(x, f"{name}.branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        unit(_average_pool(x), f"{name}.branch_pool", pool_filters, 1),
    )


def _block_b(unit: _Units, x: Tensor, name: str) -> Tensor:
    return _concatenate(
        unit(x, f"{name}.branch3x3", 384, 3, **REDUCING),
        unit.chain(x, f"{name}.branch3x3dbl", (64, 1), (96, 3), (96, 3), last=REDUCING),
        _max_pool(x, strides=2),
    )


def _block_c(unit: _Units, x: Tensor, name: str, width: int) -> Tensor:
    row, column = (1, 7), (7, 1)
    double = (width, 1), (width, column), (width, row), (width, column), (192, row)
    return _concatenate(
        unit(x, f"{name}.branch1x1", 192, 1),
        unit.chain(x, f"{name}.branch7x7", (width, 1), (width, row), (192, column)),
        unit.chain(x, f"{name}.branch7x7dbl", *double),
        unit(_average_pool(x), f"{name}.branch_pool", 192, 1),
    )


def _block_d(unit: _Units, x: Tensor, name: str) -> Tensor:
    steps = (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)
    return _concatenate(
        unit.chain(x, f"{name}.branch3x3", (192, 1), (320, 3), last=REDUCING),
        unit.chain(x, f"{name}.branch7x7x3", *steps, last=REDUCING),
        _max_pool(x, strides=2),
    )


def _block_e(unit: _Units, x: Tensor, name: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
    single = unit(x, f"{name}.branch3x3_1", 384, 1)
    double = unit.chain(x, f"{name}.branch3x3dbl", (448, 1), (384, 3))
    return _concatenate(
        unit(x, f"{name}.branch1x1", 320, 1),
        unit(single, f"{name}.branch3x3_2a", 384, (1, 3)),
        unit(single, f"{name}.branch3x3_2b", 384, (3, 1)),
        unit(double, f"{name}.branch3x3dbl_3a", 384, (1, 3)),
        unit(double, f"{name}.branch3x3dbl_3b", 384, (3, 1)),
        unit(pool(x), f"{name}.branch_pool", 192, 1),
    )


def _average_pool(x: Tensor) -> Tensor:
    """The mean over the part of the 3 x 3 window that lies within the image."""
    return keras.ops.average_pool(x, 3, strides=1, padding="same", data_format="channels_last")


def _max_pool(x: Tensor, strides: int = 1) -> Tensor:
    """The maximum over 3 x 3 windows: those within the image if it is halved, else all."""
    padding = "same" if strides == 1 else "valid"
    return keras.ops.max_pool(x, 3, strides, padding, data_format="channels_last")


def _concatenate(*branches: Tensor) -> Tensor:
    return keras.ops.concatenate(branches, axis=-1)

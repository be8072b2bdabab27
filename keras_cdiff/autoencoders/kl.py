"""The small autoencoder with a KL term, which trains on two CPU cores, and its folder on disk."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_cdiff.common.arrays import network_weights
from keras_cdiff.common.checks import is_integer
from keras_cdiff.common.files import write_whole_folder
from keras_cdiff.common.store import FolderStore, write_json

Tensor = keras.KerasTensor

_GROUPS = 8


def kl_networks(
    factor: int = 4, channels: int = 4, width: int = 32, seed: int = 0
) -> tuple[keras.Model, keras.Model]:
    """Returns an encoder and a decoder, both fully convolutional, with drawn weights.

    The encoder halves the image log2(factor) times by strided convolutions, the decoder doubles it
    by repeating pixels; a residual block follows each, but for the last. Widths are width / 2 at
    the image's own size, `width` at half of it, and 2 width below. By default there are 388,000
    weights.

    Args:
        factor: pixels of the image to one of the latents along each side: 2, 4, 8, ...
        channels: C, of the latents; neither 1 nor 3, which are images' everywhere in this package.
        width: a multiple of 16.
        seed: of the weights, which are the same on every backend; a non-negative integer.

    Returns:
        The encoder, from images (B, H, W, 3) in [-1, 1], H and W multiples of `factor`, to
        (B, H / factor, W / factor, 2 C), mean and log variance; and the decoder, from latents
        (B, h, w, C) to images (B, h factor, w factor, 3).

    Raises:
        ValueError: if an argument is out of range.

    Source: the KL-regularised autoencoders of Rombach et al., "High-Resolution Image Synthesis with
        Latent Diffusion Models" (2022), section 3.1 and appendix G, made small and without
        attention.
    """
    _check(factor, channels, width)
    levels = int(factor).bit_length() - 1
    widths = [width // 2, width, *[2 * width] * levels][: levels + 1]

    images = keras.Input((None, None, 3), dtype="float32", name="images")
    x = _convolution(widths[0])(images)
    for filters in widths[1:]:
        x = _block(_convolution(filters, strides=2)(x), filters)
    x = _block(x, widths[-1])
    encoder = keras.Model(images, _convolution(2 * channels)(_activated(x)), name="encoder")

    latents = keras.Input((None, None, channels), dtype="float32", name="latents")
    x = _convolution(widths[-1])(latents)
    x = _block(_block(x, widths[-1]), widths[-1])
    for filters in widths[-2:0:-1]:
        x = _block(_convolution(filters)(_doubled(x)), filters)
    x = _convolution(widths[0])(_doubled(x))  # a block at full size would double the time
    decoder = keras.Model(latents, _convolution(3)(_activated(x)), name="decoder")

    draw_weights([encoder, decoder], seed)
    return encoder, decoder


def _block(x: Tensor, filters: int) -> Tensor:
    """A residual block: twice norm, swish and convolution."""
    y = _convolution(filters)(_activated(x))
    return layers.Add(dtype="float32")([x, _convolution(filters)(_activated(y))])


def _doubled(x: Tensor) -> Tensor:
    return layers.UpSampling2D(2, data_format="channels_last", dtype="float32")(x)


def _activated(x: Tensor) -> Tensor:
    x = layers.GroupNormalization(_GROUPS, epsilon=1e-5, dtype="float32")(x)
    return layers.Activation("swish", dtype="float32")(x)


def _convolution(filters: int, strides: int = 1) -> layers.Conv2D:
    return layers.Conv2D(
        filters,
        3,
        strides=strides,
        padding="same",
        data_format="channels_last",
        kernel_initializer="zeros",  # drawn later, alike on every backend
        dtype="float32",
    )


def _check(factor: int, channels: int, width: int) -> None:
    if not is_integer(factor) or factor < 2 or factor & (factor - 1):
        raise ValueError(f"factor must be 2, 4, 8 or so on. Received: factor={factor!r}")
    if not is_integer(channels) or channels < 1 or channels in (1, 3):
        raise ValueError(
            "channels must be 2, 4 or more: 1 and 3 are those of images. "
            f"Received: channels={channels!r}"
        )
    if not is_integer(width) or width < 16 or width % 16:
        raise ValueError(f"width must be a multiple of 16. Received: width={width!r}")


def draw_weights(networks: Iterable[keras.Model], seed: int) -> None:
    """Draws the kernels of networks by NumPy, so that they are the same on every backend.

    A kernel is uniform with variance 1 / (inputs of one output), so that a layer keeps the scale of
    what it gets. Scales of norms become 1, biases 0.

    Args:
        networks: built models, of convolutions, dense layers and norms.
        seed: a non-negative integer.
    """
    rng = np.random.default_rng(seed)
    for weight in (weight for network in networks for weight in network.weights):
        shape = tuple(weight.shape)
        if len(shape) < 2:
            weight.assign(np.full(shape, float(weight.name == "gamma"), np.float32))
        else:
            limit = np.float32(math.sqrt(3 / math.prod(shape[:-1])))
            weight.assign((2 * rng.random(shape, np.float32) - 1) * limit)


_DESCRIPTION, _WEIGHTS = "autoencoder.json", "weights.npz"
_FORMAT = 1


def write_kl_folder(
    folder: str | os.PathLike, networks: Sequence[keras.Model], description: dict
) -> None:
    """Writes networks of `kl_networks` into a folder, atomically.

    Args:
        folder: missing or empty.
        networks: encoder and decoder.
        description: "factor", "channels", "scale" and "fingerprint".

    Raises:
        ValueError: if something is in the folder, or the networks are others.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            "An autoencoder is saved to a folder that is missing or empty. "
            f"Received: folder={str(folder)!r}"
        )
    sizes = {name: description[name] for name in ("factor", "channels")}
    sizes["width"] = 2 * int(networks[0].weights[0].shape[-1])
    weights = _named(networks)
    expected = _named(kl_networks(**sizes))
    if {name: weight.shape for name, weight in weights.items()} != {
        name: weight.shape for name, weight in expected.items()
    }:
        raise ValueError(
            "Only networks of kl_networks can be saved. Received: "
            f"{networks[0].name!r} and {networks[1].name!r}, which are others"
        )
    record = {"format": _FORMAT, "kind": "kl", **sizes}
    record |= {name: description[name] for name in ("scale", "fingerprint")}

    def write(path: Path) -> None:
        path.mkdir()
        arrays = network_weights(*networks)
        np.savez(path / _WEIGHTS, **dict(zip(weights, arrays, strict=True)))
        write_json(path / _DESCRIPTION, record)

    write_whole_folder(folder, write)


def read_kl_folder(folder: str | os.PathLike) -> tuple[keras.Model, keras.Model, dict]:
    """Returns the encoder and the decoder of a folder, and a dict with its "scale" and
    "fingerprint", which is yet to be compared.

    Raises:
        ValueError: if the folder holds no autoencoder, or is damaged.
        OSError: if the system does not let it be read.
    """
    folder = Path(folder)
    if not (folder / _DESCRIPTION).is_file():
        raise ValueError(
            f"There is no autoencoder, for want of {_DESCRIPTION}; give a folder that "
            "Autoencoder.save or apps/encode.py --autoencoder=train made. "
            f"Received: folder={str(folder)!r}"
        )
    store = FolderStore(folder, "The autoencoder is", " and fit or copy it again", _FORMAT)
    with store.reading():
        record = store.read(_DESCRIPTION)
        networks = kl_networks(**{name: record[name] for name in ("factor", "channels", "width")})
        with np.load(folder / _WEIGHTS, allow_pickle=False) as file:
            for name, weight in _named(networks).items():
                if file[name].shape != tuple(weight.shape):
                    raise ValueError(f"{name} has the shape {file[name].shape}")
                weight.assign(file[name])
        return *networks, {"scale": float(record["scale"]), "fingerprint": record["fingerprint"]}


def _named(networks: Sequence[keras.Model]) -> dict[str, keras.Variable]:
    """The weights of encoder and decoder by their names in the file."""
    return {
        f"{part}_{place:03}": weight
        for part, network in zip(("encoder", "decoder"), networks, strict=True)
        for place, weight in enumerate(network.weights)
    }

"""The autoencoder of Stable Diffusion, built from keras-cv's layers."""

import importlib
import os
from pathlib import Path
from types import ModuleType

import keras

from keras_cdiff.autoencoders.autoencoder import Autoencoder
from keras_cdiff.autoencoders.kl import draw_weights
from keras_cdiff.weights.download import RemoteFile, fetch
from keras_cdiff.weights.keras_networks import float32_layers, load_keras_weights

# 1 / the standard deviation of raw latents, which Stable Diffusion's own models are trained on.
STABLE_DIFFUSION_SCALE = 0.18215

# Encoder and decoder; their publisher names no sizes.
STABLE_DIFFUSION_FILES = (
    RemoteFile(
        "https://huggingface.co/fchollet/stable-diffusion/resolve/main/vae_encoder.h5",
        None,
        "c60fb220a40d090e0f86a6ab4c312d113e115c87c40ff75d11ffcf380aab7ebb",
    ),
    RemoteFile(
        "https://huggingface.co/fchollet/stable-diffusion/resolve/main/kcv_decoder.h5",
        None,
        "ad350a65cc8bc4a80c8103367e039a3329b4231c2469a1093869a345f55b1962",
    ),
)


def stable_diffusion_autoencoder(weights: str | os.PathLike | None = None) -> Autoencoder:
    """Returns the autoencoder of Stable Diffusion 1: factor 8, 4 channels, scale 0.18215.

    The weights are under the CreativeML Open RAIL-M licence, which restricts what they may be used
    for; the layers are keras-cv's, under Apache 2.0.

    Args:
        weights: None downloads vae_encoder.h5 and kcv_decoder.h5 (about 340 MB) once, as
            `keras_cdiff.weights.fetch` does; a folder that holds both; or "random", for weights
            that are drawn, always the same, to try things out without a network.

    Returns:
        An autoencoder of images whose sides are multiples of 8 pixels. It is called
        "stable_diffusion", "stable_diffusion:FOLDER" or "stable_diffusion:random".

    Raises:
        ModuleNotFoundError: if keras-cv is not installed.
        ValueError: if weights are missing, damaged or another network's.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022);
        `keras_cv.models.stable_diffusion.ImageEncoder` and `Decoder`.
    """
    _import_keras_cv()  # before anything is downloaded
    if weights == "random":
        encoder, decoder = _networks()
        draw_weights([encoder, decoder], seed=0)
    else:
        # Before the networks are built, which takes seconds.
        paths = _downloaded() if weights is None else _within(Path(weights))
        encoder, decoder = _networks()
        for network, path, file in zip(
            (encoder, decoder), paths, STABLE_DIFFUSION_FILES, strict=True
        ):
            what = f"Stable Diffusion's {network.name}, from {file.url}"
            load_keras_weights(network, path, what)
    name = "stable_diffusion" if weights is None else f"stable_diffusion:{os.fspath(weights)}"
    return Autoencoder(encoder, decoder, STABLE_DIFFUSION_SCALE, name)


def _import_keras_cv() -> ModuleType:
    try:
        return importlib.import_module("keras_cv.models.stable_diffusion")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("keras_cv"):
            raise
        raise ModuleNotFoundError(
            "The autoencoder of Stable Diffusion needs keras-cv: pip install keras-cdiff[latent]",
            name=error.name,
        ) from error


def _networks() -> tuple[keras.Model, keras.Model]:
    """Encoder and decoder as keras-cv builds them, but for what they do to the latents."""
    keras_cv = _import_keras_cv()
    with float32_layers():
        # The last layer keeps the mean of the latents alone, and scales it.
        encoder = keras_cv.ImageEncoder(download_weights=False).layers[:-1]
        # The first layer removes the scale. Once they are built, the others take any size.
        decoder = keras_cv.Decoder(64, 64, download_weights=False).layers[1:]
        return _sequence("encoder", 3, encoder), _sequence("decoder", 4, decoder)


def _sequence(name: str, channels: int, layers: list[keras.Layer]) -> keras.Model:
    inputs = keras.Input((None, None, channels), dtype="float32")
    return keras.Sequential([inputs, *layers], name=name)


def _downloaded() -> list[Path]:
    return [fetch(file) for file in STABLE_DIFFUSION_FILES]


def _within(folder: Path) -> list[Path]:
    paths = [folder / file.name for file in STABLE_DIFFUSION_FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"The folder must hold {paths[0].name} and {paths[1].name}, which come from "
            f"{' and '.join(file.url for file in STABLE_DIFFUSION_FILES)}. "
            f"Received: weights={str(folder)!r}, without {' and '.join(missing)}"
        )
    return paths

"""The autoencoder of Stable Diffusion, built from keras-cv's layers."""

import importlib
from pathlib import Path
from types import ModuleType

import keras

from keras_cdiff.autoencoders.kl import draw_weights
from keras_cdiff.weights.download import RemoteFile, fetch
from keras_cdiff.weights.keras_networks import float32_layers, load_keras_weights

# 1 / the standard deviation of raw latents, which Stable Diffusion's own models are trained on.
SCALE = 0.18215

# Encoder and decoder; their publisher names no sizes.
FILES = (
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


def stable_diffusion_networks(place: str = "") -> tuple[keras.Model, keras.Model]:
    """Returns the encoder and the decoder of Stable Diffusion 1; `place` as in `open_autoencoder`.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022);
        `keras_cv.models.stable_diffusion.ImageEncoder` and `Decoder`.
    """
    _import_keras_cv()  # before anything is downloaded
    if place == "random":
        networks = _networks()
        draw_weights(networks, seed=0)
        return networks
    # Before the networks are built, which takes seconds.
    paths = _within(Path(place)) if place else [fetch(file) for file in FILES]
    networks = _networks()
    for network, path, file in zip(networks, paths, FILES, strict=True):
        load_keras_weights(network, path, f"Stable Diffusion's {network.name}, from {file.url}")
    return networks


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


def _within(folder: Path) -> list[Path]:
    paths = [folder / file.name for file in FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"The folder must hold {paths[0].name} and {paths[1].name}, which come from "
            f"{' and '.join(file.url for file in FILES)}. "
            f"Received: weights={str(folder)!r}, without {' and '.join(missing)}"
        )
    return paths

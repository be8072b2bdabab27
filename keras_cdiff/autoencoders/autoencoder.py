"""Autoencoders by name: images to the moments of latents, and latents to images."""

import os
from functools import partial

import keras
import numpy as np
from keras import ops

from keras_cdiff.autoencoders.kl import read_kl_folder, write_kl_folder
from keras_cdiff.autoencoders.stable_diffusion import SCALE, stable_diffusion_networks
from keras_cdiff.common.arrays import fingerprint, network_weights
from keras_cdiff.common.batch_function import PREFERS_JIT, BatchFunction
from keras_cdiff.common.checks import check_integer, parse_name

Tensor = keras.KerasTensor

# A multiple of every factor in use.
_PROBE_SIDE = 64


class Autoencoder:
    """Turns images into the moments of latents and latents into images, in float32.

    Latents are scale * z with z ~ N(mean, exp(log variance)) of the encoder's outputs: the scale,
    about 1 / the standard deviation of z, gives a diffusion model latents of standard deviation 1.
    A function is compiled for each size of images or latents and of batch; see `BatchFunction`. The
    weights must not change, because latents outlive the object.

    Args:
        encoder: a `keras.Model` from images (B, H, W, 3) in [-1, 1] to (B, H / f, W / f, 2 C): mean
            and log variance of z.
        decoder: a `keras.Model` from z (B, h, w, C) to images (B, h f, w f, 3), about in [-1, 1].
        scale: positive.
        name: by which `open_autoencoder` opens it; it begins with the kind of networks.

    Attributes:
        factor: f.
        channels: C, never 1 or 3, which are images' everywhere in this package.

    Raises:
        ValueError: if the networks do not fit, or the scale is not positive.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022),
        section 3.1 and appendix G.
    """

    def __init__(self, encoder: keras.Model, decoder: keras.Model, scale: float, name: str):
        scale = float(scale)
        if not 0 < scale < np.inf:
            raise ValueError(f"scale must be positive and finite. Received: scale={scale}")
        self.encoder, self.decoder, self.scale, self.name = encoder, decoder, scale, name
        self.factor, self.channels = _factor_and_channels(encoder, decoder)
        self._moments = BatchFunction(
            partial(_scaled_moments, encoder, scale), encoder, jit_compile=PREFERS_JIT
        )
        self._images = BatchFunction(
            lambda latents: decoder(latents / scale, training=False),
            decoder,
            jit_compile=PREFERS_JIT,
        )
        self._fingerprint = None

    @property
    def kind(self) -> str:
        """The kind of networks, "kl" or "stable_diffusion": what stands before the name's colon."""
        return self.name.partition(":")[0]

    def moments(self, images: np.ndarray) -> np.ndarray:
        """Returns the moments of the latents of images.

            mean = scale m,  standard deviation = scale exp(v / 2)

        with (m, v) the encoder's mean and log variance, v clipped to [-30, 20].

        Args:
            images: floats (B, H, W, 3) in [-1, 1], H and W multiples of `factor`.

        Returns:
            float32 (B, H / factor, W / factor, 2 C): mean and standard deviation.

        Raises:
            ValueError: if the images are of another type or shape, or not in [-1, 1].
        """
        images = _checked("images", images, 3)
        if any(side % self.factor for side in images.shape[1:3]):
            raise ValueError(
                f"Height and width of images must be multiples of {self.factor}; resize or crop "
                f"them. Received: images of shape {images.shape}"
            )
        if np.abs(images).max() > 1.001:
            raise ValueError(
                "Images must lie in [-1, 1]; bring uint8 images there by x / 127.5 - 1. "
                f"Received: images from {images.min():g} to {images.max():g}"
            )
        return self._moments(images)

    def decode(self, latents: np.ndarray, batch_size: int = 8) -> np.ndarray:
        """Returns the images of scaled latents.

        Args:
            latents: floats (B, h, w, C), such as mean + standard deviation * noise of `moments`.
            batch_size: latents decoded at once: images of 256 x 256 take a lot of memory.

        Returns:
            float32 images (B, h factor, w factor, 3), about in [-1, 1], not clipped.

        Raises:
            ValueError: if the latents are of another type or shape, or not finite.
        """
        latents = _checked("latents", latents, self.channels)
        check_integer("batch_size", batch_size)
        starts = range(0, len(latents), batch_size)
        return np.concatenate([self._images(latents[i : i + batch_size]) for i in starts])

    def fingerprint(self) -> str:
        """Returns the sha256 of what decides the latents: kind and weights of both networks, and
        the scale. It is the same on every backend.
        """
        if self._fingerprint is None:
            what = f"{self.kind} {self.factor} {self.channels} {self.scale!r}"
            weights = network_weights(self.encoder, self.decoder)
            self._fingerprint = fingerprint(what, *weights)
        return self._fingerprint

    def describe(self) -> dict:
        """Returns what latents and models keep of their autoencoder, as a dict for JSON."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "factor": self.factor,
            "channels": self.channels,
            "scale": self.scale,
        }

    def save(self, folder: str | os.PathLike) -> None:
        """Writes an autoencoder of the kind "kl" atomically; `open_autoencoder` opens it as
        "kl:FOLDER".

        Args:
            folder: missing or empty.

        Raises:
            ValueError: if the autoencoder is of another kind, or something is in the folder.
        """
        if self.kind != "kl":
            raise ValueError(
                "Only autoencoders of the kind kl are saved; open_autoencoder opens others by "
                f"their name. Received: an autoencoder {self.name!r}"
            )
        write_kl_folder(folder, [self.encoder, self.decoder], self.describe())

    def __repr__(self) -> str:
        return f"Autoencoder({self.name!r}, fingerprint={self.fingerprint()[:16]!r})"


FORMS = ("stable_diffusion", "stable_diffusion:FOLDER", "stable_diffusion:random", "kl:FOLDER")


def open_autoencoder(name: str, fingerprint: str | None = None) -> Autoencoder:
    """Opens an autoencoder by its name.

    The weights of Stable Diffusion 1 are under the CreativeML Open RAIL-M licence, which restricts
    what they may be used for; the layers are keras-cv's, under Apache 2.0.

    Args:
        name: "stable_diffusion" of factor 8 and 4 channels, with about 340 MB of weights that are
            downloaded once, as `keras_cdiff.weights.fetch` does; "stable_diffusion:FOLDER", with
            vae_encoder.h5 and kcv_decoder.h5 in a folder; "stable_diffusion:random", with drawn
            weights, to try things out; or "kl:FOLDER", one that `Autoencoder.save` wrote.
        fingerprint: of the autoencoder that latents or a model were made with; None for any.

    Raises:
        ValueError: if the name is unknown; if weights are missing, damaged or another network's; or
            if the autoencoder is not that of the fingerprint.
        ModuleNotFoundError: if it needs keras-cv, and that is not installed.
    """
    kind, place = parse_name("An autoencoder", FORMS, "name", name)
    if kind == "kl":
        encoder, decoder, record = read_kl_folder(place)
    else:
        encoder, decoder = stable_diffusion_networks(place)
        record = {"scale": SCALE}
    autoencoder = Autoencoder(encoder, decoder, record["scale"], name)
    if kind == "kl" and autoencoder.fingerprint() != record["fingerprint"]:
        raise ValueError(
            "The autoencoder is damaged: its weights are not those that were saved; fit or copy it "
            f"again. Received: folder={place!r}"
        )
    if fingerprint is not None and autoencoder.fingerprint() != fingerprint:
        raise ValueError(
            "Latents and model must come from the same autoencoder: open the one that they were "
            f"made with, whose fingerprint begins with {str(fingerprint)[:16]}. Received: "
            f"name={name!r}, whose fingerprint begins with {autoencoder.fingerprint()[:16]}"
        )
    return autoencoder


def _scaled_moments(encoder: keras.Model, scale: float, images: Tensor) -> Tensor:
    mean, log_variance = ops.split(encoder(images, training=False), 2, axis=-1)
    std = ops.exp(ops.clip(log_variance, -30.0, 20.0) / 2)
    return scale * ops.concatenate([mean, std], axis=-1)


def _factor_and_channels(encoder: keras.Model, decoder: keras.Model) -> tuple[int, int]:
    """Finds the shapes of latents without computing any."""
    side = _PROBE_SIDE
    try:
        moments = encoder(keras.KerasTensor((2, side, side, 3), "float32"), training=False).shape
        raw = keras.KerasTensor((*moments[:3], moments[3] // 2), "float32")
        images = decoder(raw, training=False).shape
    except Exception as error:  # whatever networks raise that do not fit
        raise ValueError(
            f"The encoder must take float32 images (B, {side}, {side}, 3), and the decoder half of "
            "the channels that the encoder gives. Received: encoder "
            f"{encoder.name!r} and decoder {decoder.name!r}, which say: {error}"
        ) from error
    height, width, channels = moments[1], moments[2], moments[3] // 2
    if height != width or side % height or tuple(images) != (2, side, side, 3):
        raise ValueError(
            "The decoder must give images of the size that the encoder took. Received: an encoder "
            f"from {(2, side, side, 3)} to {tuple(moments)}, and a decoder to {tuple(images)}"
        )
    if channels in (1, 3) or moments[3] % 2:
        raise ValueError(
            "Latents must have 2, 4 or more channels, because 1 and 3 are those of images, and "
            "the encoder must give twice as many: mean and log variance. "
            f"Received: an encoder that gives {moments[3]} channels"
        )
    return side // height, channels


def _checked(what: str, batch: np.ndarray, channels: int) -> np.ndarray:
    batch = np.asarray(batch)
    # bfloat16 and its like are no kinds of NumPy's own.
    floats = batch.dtype.kind == "f" or "float" in batch.dtype.name
    if not floats or batch.ndim != 4 or batch.size == 0 or batch.shape[3] != channels:
        raise ValueError(
            f"Give {what} as floats (B, H, W, {channels}), at least one. "
            f"Received: {what} of shape {batch.shape}, dtype {batch.dtype}"
        )
    batch = batch.astype(np.float32, copy=False)
    if not np.isfinite(batch).all():
        raise ValueError(
            f"All numbers of {what} must be finite. Received: {what} with "
            f"{np.count_nonzero(~np.isfinite(batch))} numbers that are not"
        )
    return batch

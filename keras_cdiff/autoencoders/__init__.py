"""Autoencoders: images to the latents that diffusion models learn, and back."""

from keras_cdiff.autoencoders.autoencoder import Autoencoder, open_autoencoder
from keras_cdiff.autoencoders.kl import kl_networks
from keras_cdiff.autoencoders.training import fit_autoencoder

__all__ = [
    "Autoencoder",
    "fit_autoencoder",
    "kl_networks",
    "open_autoencoder",
]

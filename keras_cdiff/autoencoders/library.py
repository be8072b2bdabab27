"""Autoencoders by name."""

from keras_cdiff.autoencoders.autoencoder import Autoencoder
from keras_cdiff.autoencoders.kl_folder import read_kl_folder
from keras_cdiff.autoencoders.stable_diffusion import stable_diffusion_autoencoder


def open_autoencoder(name: str, fingerprint: str | None = None) -> Autoencoder:
    """Opens an autoencoder by its name.

    Args:
        name: "stable_diffusion", with downloaded weights; "stable_diffusion:FOLDER", with those in
            a folder; "stable_diffusion:random", with drawn ones, to try things out; or "kl:FOLDER",
            one that `Autoencoder.save` wrote.
        fingerprint: of the autoencoder that latents or a model were made with; None for any.

    Raises:
        ValueError: if the name is unknown, the autoencoder cannot be had, or it is another than the
            one of the fingerprint.
        ModuleNotFoundError: if it needs keras-cv, and that is not installed.
    """
    kind, colon, place = str(name).partition(":")
    if kind == "stable_diffusion" and bool(colon) == bool(place):
        autoencoder = stable_diffusion_autoencoder(place or None)
    elif kind == "kl" and place:
        autoencoder = _opened_kl(place)
    else:
        raise ValueError(
            "An autoencoder is stable_diffusion, stable_diffusion:FOLDER, stable_diffusion:random "
            f"or kl:FOLDER. Received: name={name!r}"
        )
    if fingerprint is not None and autoencoder.fingerprint() != fingerprint:
        raise ValueError(
            "Latents and model must come from the same autoencoder: open the one that they were "
            f"made with, whose fingerprint begins with {str(fingerprint)[:16]}. Received: "
            f"name={name!r}, whose fingerprint begins with {autoencoder.fingerprint()[:16]}"
        )
    return autoencoder


def _opened_kl(folder: str) -> Autoencoder:
    encoder, decoder, record = read_kl_folder(folder)
    autoencoder = Autoencoder(encoder, decoder, record["scale"], f"kl:{folder}")
    if autoencoder.fingerprint() != record["fingerprint"]:
        raise ValueError(
            "The autoencoder is damaged: its weights are not those that were saved; fit or copy it "
            f"again. Received: folder={folder!r}"
        )
    return autoencoder

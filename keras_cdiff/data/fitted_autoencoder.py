"""An autoencoder that is fitted to the images that it then encodes, kept beside the latents."""

import json
import os
from pathlib import Path

from keras_cdiff.autoencoders import Autoencoder, fit_autoencoder, open_autoencoder
from keras_cdiff.common.files import FolderLock
from keras_cdiff.data.latent_store import IN_USE, check_begun, note
from keras_cdiff.data.pipeline import make_dataset
from keras_cdiff.data.source import Source

_REQUEST = "autoencoder_request.json"


def fitted_autoencoder(
    source: Source,
    image_size: int,
    folder: str | os.PathLike,
    steps: int = 2000,
    seed: int = 0,
    mirrored: bool = True,
    shard_size: int = 1024,
) -> Autoencoder:
    """Returns an autoencoder that is fitted to a source's images, once: it lies in the store of
    their latents, which `encode_source` writes with it.

    Interrupted, the fit begins anew when it is repeated.

    Args:
        source: The images.
        image_size: The side of the images in pixels.
        folder: The store: FOLDER/autoencoder holds the autoencoder, and
            FOLDER/autoencoder_request.json says what it was fitted to.
        steps: Training steps.
        seed: Of weights, order and draws.
        mirrored: Whether half the images are mirrored, and the mirrored ones encoded as well.
        shard_size: As of `encode_source`.

    Returns:
        The autoencoder, named "kl:FOLDER/autoencoder".

    Raises:
        ValueError: If an argument is out of range; if the folder holds latents of another request,
            an autoencoder of another fit, or is in use.
    """
    folder = Path(folder)
    check_begun(source, image_size, folder, mirrored, shard_size)
    request = {
        "source_digest": source.digest(),
        "image_size": image_size,
        "steps": steps,
        "seed": seed,
        "mirrored": bool(mirrored),
    }
    place = folder / "autoencoder"
    with FolderLock(folder, IN_USE):
        if place.exists():
            _check_fit(folder, request)
        else:
            images = make_dataset(
                source,
                image_size,
                min(16, len(source)),
                seed=seed,
                horizontal_flip=mirrored,
                labels=False,
            )
            fitted = fit_autoencoder(images, steps=steps, seed=seed)
            note(folder / _REQUEST, request)  # first: an autoencoder is never there without it
            fitted.save(place)
    return open_autoencoder(f"kl:{place}")


def _check_fit(folder: Path, request: dict) -> None:
    """Raises an error if the autoencoder of a folder is not known to be that of the request."""
    try:
        found = json.loads((folder / _REQUEST).read_text("utf-8"))
        differing = [name for name in request if found[name] != request[name]]
        pairs = [f"{name}={request[name]!r}, there {found[name]!r}" for name in differing]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        pairs = [f"{_REQUEST}, which cannot be read: {type(error).__name__}: {error}"]
    if pairs:
        raise ValueError(
            "The folder holds an autoencoder that was not fitted by this request: choose another "
            f"folder, by --output, or encode with it by --autoencoder=kl:{folder / 'autoencoder'}. "
            f"Received: folder={str(folder)!r}, {'; '.join(pairs)}"
        )

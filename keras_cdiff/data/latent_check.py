"""Whether all that a store of latents holds is what was written."""

import os

from keras_cdiff.autoencoders import open_autoencoder
from keras_cdiff.data.captions import CaptionEmbeddings
from keras_cdiff.data.latents import LatentSource


def check_store(folder: str | os.PathLike) -> dict[str, int]:
    """Reads every file of a store once and compares it with what was noted of it: the latents,
    labels and captions, the embeddings of captions, and the copy of the autoencoder.

    Args:
        folder: A finished store.

    Returns:
        How many were checked: "images", "embeddings" (one for each text encoder) and
        "autoencoders" (0 or 1).

    Raises:
        ValueError: If the store is not whole, or one of the files differs.
    """
    latents = LatentSource(folder, read_all=True)
    embeddings = sorted((latents.folder / "text").glob("text-*"))
    for each in embeddings:
        CaptionEmbeddings(each, read_all=True)
    copies = int(latents.keeps_autoencoder)
    if copies:
        open_autoencoder(latents.autoencoder_name(), latents.autoencoder["fingerprint"])
    return {"images": len(latents), "embeddings": len(embeddings), "autoencoders": copies}

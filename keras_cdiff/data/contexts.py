"""Texts as contexts: encoders opened by name, and contexts that are encoded when they are read."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from keras_cdiff.data.text import TextEncoder


class TextContexts:
    """A sequence of N contexts, for N texts too many to keep all their contexts in memory.

    Args:
        encoder: the text encoder.
        texts: N strings; "" is the null text.
    """

    def __init__(self, encoder: TextEncoder, texts: Sequence[str]):
        self.encoder, self.texts = encoder, list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> np.ndarray:
        """Returns one context, float32 (L, D), or several, (B, L, D)."""
        if isinstance(rows, int | np.integer):
            return self.encoder.encode([self.texts[rows]])[0]
        rows = range(len(self))[rows] if isinstance(rows, slice) else rows
        return self.encoder.encode([self.texts[row] for row in rows])

    def digest(self) -> str:
        """Returns a sha256 over the encoder and the texts."""
        content = json.dumps([self.encoder.fingerprint(), self.texts])
        return hashlib.sha256(content.encode()).hexdigest()


def open_text_encoder(name: str, fingerprint: str | None = None) -> TextEncoder:
    """Opens the text encoder that a string names.

    `minilm:PATH`: all-MiniLM-L6-v2, or another BERT of its kind, from a file or folder; see
    `keras_cdiff.data.minilm`. 32 tokens of width 384.
    `clip`: the text encoder of Stable Diffusion, CLIP ViT-L/14, downloaded once. 77 tokens of width
    768. `clip:FOLDER` finds its files there; `clip:random` has random weights and reads bytes, for
    trying things out.

    Args:
        name: the encoder, in one of the forms above.
        fingerprint: what `fingerprint()` must give; None takes any.

    Returns:
        The encoder. `.name` is `name`.

    Raises:
        ValueError: if the name is unknown, the files are not what they should be, or the
            fingerprint is another.
    """
    kind, _, place = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind == "minilm" and place:
        from keras_cdiff.data.minilm import open_minilm

        encoder = open_minilm(place)
    elif kind == "clip" and (place or name == "clip"):
        from keras_cdiff.data.clip import open_clip

        encoder = open_clip(place)
    else:
        raise ValueError(
            "A text encoder is minilm:PATH, clip, clip:FOLDER or clip:random. "
            f"Received: name={name!r}"
        )
    if fingerprint is not None and encoder.fingerprint() != fingerprint:
        raise ValueError(
            "Captions, model and prompt must use the same text encoder: that of the model has the "
            f"fingerprint {fingerprint}, this one {encoder.fingerprint()}. Open the one that the "
            f"model was trained with. Received: name={name!r}"
        )
    return encoder

"""The contexts of texts, encoded when they are read."""

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

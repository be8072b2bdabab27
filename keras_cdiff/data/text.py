"""Text encoders: networks that turn captions and prompts into contexts."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_cdiff.common.arrays import fingerprint
from keras_cdiff.common.batch_function import BatchFunction


class TextEncoder:
    """Turns texts into contexts: one row of features a token, and rows of zeros as padding.

    An empty text, or one of blanks alone, has no rows: it is the null text, all zeros. Of a text of
    more than `max_length` tokens the first ones are kept.

    Args:
        name: what `open_text_encoder` opens it by.
        network: a `keras.Model` from [tokens int32 (B, L), which of them are tokens bool (B, L)] to
            float32 (B, L, width).
        tokenize: a function from a text to its tokens, `max_length` at most.
        width: features of a row.
        max_length: L of a context, in tokens.
        identity: texts, bytes and arrays by name that tell this encoder from any other: its kind,
            its weights, its tokenizer. They are read for the first fingerprint.
        step: the network is run with L a multiple of it.
    """

    def __init__(
        self,
        name: str,
        network: keras.Model,
        tokenize: Callable[[str], Sequence[int]],
        *,
        width: int,
        max_length: int,
        identity: Callable[[], Mapping[str, str | bytes | np.ndarray]],
        step: int = 8,
    ):
        self.name, self.width, self.max_length = name, width, max_length
        self._tokenize = tokenize
        self._identity, self._step = identity, step
        self._fingerprint: str | None = None
        self._run_network = BatchFunction(lambda batch: network(batch, training=False), network)

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Returns the contexts of texts.

        Args:
            texts: N strings.
            batch_size: texts that the network sees at once.

        Returns:
            float32 (N, max_length, width). Rows after a text's last token are exactly zero.

        Raises:
            ValueError: if they are not strings.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                "Texts must be a list of strings; put a single one into a list. "
                f"Received: texts={texts!r:.200}"
            )
        tokens = [self._tokenize(text) if text.strip() else () for text in texts]
        contexts = np.zeros((len(tokens), self.max_length, self.width), np.float32)
        # Texts of like lengths share a batch, so that the network sees little padding.
        order = sorted((n for n in range(len(tokens)) if tokens[n]), key=lambda n: len(tokens[n]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            rows = self._run([tokens[place] for place in places], batch_size)
            for place, row in zip(places, rows, strict=True):
                contexts[place, : len(row)] = row
        return contexts

    def fingerprint(self) -> str:
        """Returns a sha256 over kind, length, weights and tokenizer, the same on every backend."""
        if self._fingerprint is None:
            shape = f"{self.max_length} {self.width}"
            self._fingerprint = fingerprint(shape, **self._identity())
        return self._fingerprint

    def describe(self) -> dict:
        """Returns what embeddings, models and prompts say of their encoder, as a dict for JSON."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "width": self.width,
            "max_length": self.max_length,
        }

    def __repr__(self) -> str:
        return f"TextEncoder({self.name!r}, width={self.width}, max_length={self.max_length})"

    def _run(self, tokens: list[Sequence[int]], batch_size: int) -> list[np.ndarray]:
        """The rows of each text."""
        length = -(-max(map(len, tokens)) // self._step) * self._step
        length = min(length, self.max_length)
        numbers = np.zeros((len(tokens), length), np.int32)
        present = np.zeros((len(tokens), length), bool)
        for row, text in enumerate(tokens):
            numbers[row, : len(text)] = text
            present[row, : len(text)] = True
        outputs = self._run_network([numbers, present], most=batch_size)
        return [output[: len(text)] for output, text in zip(outputs, tokens, strict=True)]


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

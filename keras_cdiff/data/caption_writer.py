"""Writes the contexts of captions: each distinct one once, without its padding."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import keras
import numpy as np

from keras_cdiff.common.files import file_digest
from keras_cdiff.data.text import TextEncoder

FORMAT = 1

_BATCHES = 8  # encoded between two writes, so that of many captions few are in memory


def write_embeddings(
    folder: Path,
    captions: Sequence[Sequence[str]],
    encoder: TextEncoder,
    request: dict,
    batch_size: int,
    progress: bool,
) -> None:
    """Writes all files of the embeddings into a new folder, the index last.

    Args:
        folder: the folder, at which there is nothing.
        captions: of each example.
        encoder: the text encoder.
        request: what the index says of encoder and captions, plain data.
        batch_size: captions that the encoder sees at once.
        progress: whether a progress bar over the captions is shown.

    Raises:
        ValueError: if the encoder gives numbers beyond float16.
    """
    folder.mkdir()
    places: dict[str, int] = {}
    for texts in captions:
        for text in texts:
            places.setdefault(text, len(places))
    order = np.array([places[text] for texts in captions for text in texts], np.int32)
    np.save(folder / "captions.npy", order)
    np.save(folder / "examples.npy", np.cumsum([0, *map(len, captions)]))
    blocks = _encoded(list(places), encoder, batch_size, progress)
    with open(folder / "tokens.npy", "wb") as file:
        lengths = _write_rows(file, blocks, encoder)
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths]))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
    }
    index = {"format": FORMAT, **request, "files": files}
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def _encoded(
    texts: list[str], encoder: TextEncoder, batch_size: int, progress: bool
) -> Iterator[np.ndarray]:
    """Yields the contexts of some texts after the other."""
    bar = keras.utils.Progbar(len(texts), unit_name="caption") if progress else None
    for start in range(0, len(texts), _BATCHES * batch_size):
        some = texts[start : start + _BATCHES * batch_size]
        yield encoder.encode(some, batch_size)
        if bar is not None:
            bar.update(start + len(some))


def _write_rows(file: BinaryIO, blocks: Iterable[np.ndarray], encoder: TextEncoder) -> list[int]:
    """Writes the rows of all contexts but for their padding as one .npy; returns their numbers."""
    lengths: list[int] = []
    _write_header(file, 0, encoder.width)
    start = file.tell()
    for block in blocks:
        present = (block != 0).any(axis=-1)
        lengths += present.sum(axis=-1).tolist()
        with np.errstate(over="ignore"):
            rows = block[present].astype("<f2")
        if not np.isfinite(rows).all():
            raise ValueError(
                "The embeddings must be finite in float16, up to 65504; check the encoder's "
                f"weights. Received: values up to {np.abs(block).max()} of encoder={encoder!r}"
            )
        file.write(np.ascontiguousarray(rows))
    file.seek(0)
    _write_header(file, sum(lengths), encoder.width)  # NumPy leaves room for longer numbers
    assert file.tell() == start
    return lengths


def _write_header(file: BinaryIO, rows: int, width: int) -> None:
    header = {"descr": "<f2", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)

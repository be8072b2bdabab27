"""Captions as contexts: embedded once, kept on disk, and handed on beside the images."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import keras
import numpy as np

from keras_cdiff.common.files import file_digest, write_whole_folder
from keras_cdiff.common.store import FolderStore, write_json
from keras_cdiff.data.sources import Source
from keras_cdiff.data.text import TextEncoder
from keras_cdiff.distribution import local_work

FORMAT = 1

_CHECKED_BYTES = 1 << 30  # files up to this size are read through whenever they are opened

_IN_USE = (
    "Captions are being embedded there by another process: wait until it is done, then repeat the "
    "command."
)


class CaptionEmbeddings:
    """The contexts of a source's captions, read from a folder of `embed_captions`.

    Rows of padding are not stored, and a caption that occurs twice is stored once, in float16: a
    token takes 2 width bytes. Checksums are compared when the folder is opened, of a file above
    1 GiB the size alone.

    Args:
        folder: the folder.
        read_all: whether files above 1 GiB are read through as well.

    Attributes:
        encoder: what describes the text encoder; see `TextEncoder.describe`.

    Raises:
        ValueError: if a file is missing, damaged or of another format.
        OSError: if the system does not let one be read.
    """

    def __init__(self, folder: str | os.PathLike, read_all: bool = False):
        self.folder = Path(folder)
        store = _text_store(self.folder)
        with store.reading():
            index = store.read()
            self.encoder = dict(index["encoder"])
            self._width, self._length = self.encoder["width"], self.encoder["max_length"]
            for name, entry in index["files"].items():
                small = entry["bytes"] <= _CHECKED_BYTES
                store.check(name, entry["sha256"] if small or read_all else None, entry["bytes"])
        self._tokens = np.load(self.folder / "tokens.npy", mmap_mode="r")
        self._offsets = np.load(self.folder / "offsets.npy")  # of the rows of each distinct text
        self._texts = np.load(self.folder / "captions.npy")  # the distinct text of each caption
        self._examples = np.load(self.folder / "examples.npy")  # where each example's begin

    def __len__(self) -> int:
        return len(self._examples) - 1

    def __getitem__(self, index: int) -> "ExampleContexts":
        """Returns the contexts of an example: float32 (max_length, width), one a caption, each
        read when it is indexed.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"There are captions of {len(self)} examples. Received: index={index}")
        first, end = self._examples[index : index + 2]
        return ExampleContexts(self, self._texts[first:end])

    def __repr__(self) -> str:
        return f"CaptionEmbeddings({str(self.folder)!r}, {len(self)} examples)"

    def context(self, text: int) -> np.ndarray:
        """Returns the context of a distinct text by its number, float32 (max_length, width)."""
        rows = self._tokens[self._offsets[text] : self._offsets[text + 1]]
        context = np.zeros((self._length, self._width), np.float32)
        context[: len(rows)] = rows
        return context


class ExampleContexts:
    """The contexts of one example's captions, of which training reads one at a time."""

    def __init__(self, embeddings: CaptionEmbeddings, texts: Sequence[int]):
        self.embeddings, self.texts = embeddings, texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, caption: int) -> np.ndarray:
        return self.embeddings.context(self.texts[caption])


class WithContext:
    """A source whose examples have the contexts of their captions.

    An example gets "contexts", a sequence of float32 (max_length, width), one a caption. All else
    is the source's own, its digest too.

    Args:
        source: the source.
        embeddings: of its captions.

    Raises:
        ValueError: if the embeddings are of another number of examples.
    """

    def __init__(self, source: Source, embeddings: CaptionEmbeddings):
        if len(source) != len(embeddings):
            raise ValueError(
                "The embeddings must be those of the source's captions: use embed_captions. "
                f"Received: embeddings of {len(embeddings)} examples, source={source!r}"
            )
        self.source, self.embeddings = source, embeddings

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        return {**self.source[index], "contexts": self.embeddings[index]}

    def __getattr__(self, name: str) -> object:
        if name in ("source", "embeddings"):  # not set yet, in a copy being made
            raise AttributeError(name)
        return getattr(self.source, name)

    def __repr__(self) -> str:
        return f"WithContext({self.source!r}, {self.embeddings.encoder['name']!r})"


def embed_captions(
    source: Source,
    encoder: TextEncoder,
    folder: str | os.PathLike,
    batch_size: int = 64,
    progress: bool = True,
) -> CaptionEmbeddings:
    """Returns the contexts of a source's captions, which are encoded once.

    They lie in a subfolder text-DIGITS, named by a digest of encoder and captions, which you may
    remove. Each distinct caption is encoded once; an interrupted call begins anew. Under
    `distribution.shared_by` the first process encodes them all, and the others wait.

    Args:
        source: the source.
        encoder: the text encoder.
        folder: where such subfolders are kept; see `caption_folder`.
        batch_size: captions that the encoder sees at once.
        progress: whether a progress bar over the captions is shown.

    Returns:
        The embeddings, one entry for each of the source's examples.

    Raises:
        ValueError: if the source has no captions, what lies in the folder is damaged, another
            process is embedding captions there, or the encoder gives numbers beyond float16.
        LostPeer: if the first of several processes has failed or ended.
    """
    captions = source.captions()
    if captions is None:
        raise ValueError(
            "Text needs captions: an array `captions` of an npz file, a metadata.csv of a folder, "
            f"or a data set of TFDS that has some. Received: source={source.name!r}"
        )
    digest = _digest(captions)
    key = hashlib.sha256(f"{encoder.fingerprint()} {digest}".encode()).hexdigest()[:16]
    path = Path(folder).expanduser() / f"text-{key}"
    with local_work() as processes:
        if processes.first and not path.exists():
            request = {"encoder": encoder.describe(), "captions": digest}
            with _text_store(path.parent).writing(_IN_USE):
                if not path.exists():  # another process may have been faster
                    write_whole_folder(
                        path,
                        lambda part: _write_embeddings(
                            part, captions, encoder, request, batch_size, progress
                        ),
                    )
    return CaptionEmbeddings(path)


def caption_folder(source_name: str, fallback: str | os.PathLike) -> Path:
    """Returns where the embeddings of a source's captions are kept: beside its data.

    That is PATH.text of `npz:PATH` and `folder:PATH`, within which it would look like a class, and
    PATH/text of `latents:PATH`.

    Args:
        source_name: the source, as `open_source` takes it.
        fallback: the folder for all other sources, and for places that cannot be written to.
    """
    scheme, _, place = source_name.partition(":")
    if scheme not in ("npz", "folder", "latents") or not place:
        return Path(fallback)
    path = Path(os.path.abspath(Path(place).expanduser()))
    folder = path / "text" if scheme == "latents" else path.with_name(f"{path.name}.text")
    existing = folder if folder.exists() else folder.parent
    return folder if os.access(existing, os.W_OK) else Path(fallback)


def _digest(captions: Iterable[Sequence[str]]) -> str:
    sha = hashlib.sha256()
    for texts in captions:
        sha.update(json.dumps(list(texts)).encode() + b"\n")
    return sha.hexdigest()


def _text_store(folder: Path) -> FolderStore:
    return FolderStore(
        folder, "Embeddings of captions are", ", and they will be made again", FORMAT
    )


_BATCHES = 8  # encoded between two writes, so that of many captions few are in memory


def _write_embeddings(
    folder: Path,
    captions: Sequence[Sequence[str]],
    encoder: TextEncoder,
    request: dict,
    batch_size: int,
    progress: bool,
) -> None:
    """Writes all files of the embeddings into a new folder, the index, with the request, last."""
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
    write_json(folder / "index.json", index)


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

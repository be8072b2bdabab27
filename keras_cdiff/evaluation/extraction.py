"""Features of a set of images: extracted once, in order, and kept on disk if that is wanted."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_cdiff.evaluation.features import Extractor
from keras_cdiff.evaluation.image_sets import ImageSet
from keras_cdiff.files import write_whole

# Batches between two notes of how far an extraction has come.
_NOTE_EVERY = 16


class Features(NamedTuple):
    """What the extractor says about each image of a set: arrays in memory, or mapped from files."""

    features: np.ndarray
    """float32 (N, D)."""
    logits: np.ndarray | None
    """float32 (N, K), or None if the extractor has none."""


def extract(
    images: ImageSet,
    extractor: Extractor,
    cache: str | os.PathLike | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Features:
    """Returns the features of all images of a set.

    With a cache a set is extracted once: its features lie in a folder whose name is a digest of the
    images and the extractor. An interrupted extraction goes on where it stopped.

    Args:
        images: the set.
        extractor: the network that sees the images.
        cache: folder of features on disk; None keeps them in memory.
        batch_size: images the extractor sees at once.
        progress: whether a progress bar over the images is shown.
    """
    shapes = {"features": (len(images), extractor.feature_width)}
    if extractor.num_logits:
        shapes["logits"] = (len(images), extractor.num_logits)
    store = _Memory(shapes) if cache is None else _Folder(Path(cache), images, extractor, shapes)
    bar = keras.utils.Progbar(len(images), unit_name="image") if progress else None
    if store.done < len(images):
        pending: list[np.ndarray] = []
        for batch in images.batches(store.done, batch_size):
            pending.extend(batch)
            while len(pending) >= batch_size:
                store.append(*extractor(pending[:batch_size]))
                del pending[:batch_size]
                if bar is not None:
                    bar.update(store.done)
        if pending:
            store.append(*extractor(pending))
    if bar is not None:
        bar.update(len(images))
    return store.finish()


class _Memory:
    """Features in memory."""

    def __init__(self, shapes: dict[str, tuple]):
        self.arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        self.done = 0

    def append(self, features: np.ndarray, logits: np.ndarray | None) -> None:
        rows = slice(self.done, self.done + len(features))
        for name, values in (("features", features), ("logits", logits)):
            if values is not None:
                self.arrays[name][rows] = values
        self.done = rows.stop

    def finish(self) -> Features:
        return Features(self.arrays["features"], self.arrays.get("logits"))


class _Folder(_Memory):
    """Features in a folder: features.npy, logits.npy, and progress.json, which counts the rows that
    are certain.
    """

    def __init__(
        self, cache: Path, images: ImageSet, extractor: Extractor, shapes: dict[str, tuple]
    ):
        description = {"images": images.digest(), "extractor": extractor.describe()}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        self.folder = cache / digest[:16]
        self.description = {**description, "name": images.name, "count": len(images)}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done = self._read_progress(len(images))
        self.arrays = {name: self._open(name, shape) for name, shape in shapes.items()}
        self._noted = self.done
        self._batches = 0

    def _read_progress(self, count: int) -> int:
        try:
            done = json.loads((self.folder / "progress.json").read_text())["done"]
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                "The cached features' progress.json is damaged: remove the folder. "
                f"Received: folder={str(self.folder)!r} ({error})"
            ) from error
        return min(int(done), count)

    def _open(self, name: str, shape: tuple) -> np.memmap:
        path = self.folder / f"{name}.npy"
        if self.done == 0:
            return np.lib.format.open_memmap(path, "w+", np.float32, shape)
        try:
            array = np.lib.format.open_memmap(path, "r+")
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}, not {shape}")
        except (OSError, ValueError) as error:
            raise ValueError(
                "The cached features are damaged: remove the folder. "
                f"Received: folder={str(self.folder)!r} ({error})"
            ) from error
        return array

    def append(self, features: np.ndarray, logits: np.ndarray | None) -> None:
        super().append(features, logits)
        self._batches += 1
        if self._batches % _NOTE_EVERY == 0:
            self._note()

    def _note(self) -> None:
        """Writes the rows to disk, then their number."""
        for array in self.arrays.values():
            array.flush()
        note = json.dumps({"done": self.done, **self.description}, indent=2)
        write_whole(self.folder / "progress.json", lambda path: path.write_text(note))
        self._noted = self.done

    def finish(self) -> Features:
        if self._noted < self.done or not (self.folder / "progress.json").exists():
            self._note()
        return super().finish()

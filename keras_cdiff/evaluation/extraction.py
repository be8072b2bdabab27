"""Features of a set of images: extracted once, in order, and kept on disk if that is wanted."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_cdiff.common.store import FolderStore, write_json
from keras_cdiff.distribution import local_work, share, sharing
from keras_cdiff.evaluation.features import Extractor
from keras_cdiff.evaluation.image_sets import ImageSet

# To be raised when a resize, an extractor, a sampler or a source comes to mean something else under
# the same description: what older versions have cached is then no longer taken.
CACHE_FORMAT = 1

# A process that is killed loses no more than what it has extracted in this time.
_SECONDS_BETWEEN_NOTES = 30.0

_IN_USE = (
    "This set is being extracted by another process: wait until it is done, or choose another "
    "cache."
)


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

    With a cache a set is extracted once: its features lie in a folder named by a digest of images
    and extractor, 4 (D + K) bytes an image; nothing ever removes it, but you may. An interrupted
    extraction goes on where it stopped, with any number of processes. Under
    `distribution.shared_by` they share the images, and all return all features.

    Args:
        images: the set.
        extractor: the network that sees the images.
        cache: folder of features on disk; None keeps them in memory.
        batch_size: images the extractor sees at once.
        progress: whether a progress bar over the images is shown, by the first process.

    Returns:
        The features; from a cache they are mapped, and cannot be written to.

    Raises:
        ValueError: if the set yields more or fewer images than it says, if what lies in the cache
            is damaged, or if another process extracts the same set into it.
        LostPeer: if one of several processes has failed or ended.
    """
    processes = sharing()
    count = len(images)
    shapes = {"features": (count, extractor.feature_width)}
    if extractor.num_logits:
        shapes["logits"] = (count, extractor.num_logits)
    store = _Memory(shapes) if cache is None else _Folder(Path(cache), images, extractor, shapes)
    bar = None
    if progress and processes.first:
        bar = keras.utils.Progbar(count, unit_name="image")
    if processes.count > 1:
        _extract_shared(images, extractor, store, batch_size, bar)
    elif not store.complete:
        with store.open():
            for batch in _batches(images, store, batch_size):
                store.append(*extractor(batch))
                if bar is not None:
                    bar.update(store.done)
    if bar is not None:
        bar.update(count)
    return store.features()


def _extract_shared(
    images: ImageSet,
    extractor: Extractor,
    store: "_Memory",
    batch_size: int,
    bar: keras.utils.Progbar | None,
) -> None:
    """Fills a store by all processes; one that they share is written by the first."""
    processes = sharing()
    writes = processes.first or not store.shared
    with contextlib.ExitStack() as opened:
        with local_work():
            if writes and not store.complete:
                opened.enter_context(store.open())
        done = next(share([store], lambda store: store.done))
        for features, logits in extract_in_rounds(images, extractor, done, batch_size):
            done += len(features)
            if writes:
                store.append(features, logits)
            if bar is not None:
                bar.update(done)
    processes.barrier()  # now the others find all rows in the folder


def _batches(images: ImageSet, store: "_Memory", batch_size: int) -> Iterator[list[np.ndarray]]:
    """The images that the store has not, in batches of that size and a shorter one at the end."""
    count = len(images)
    if store.done == count:
        return
    seen = store.done
    pending: list[np.ndarray] = []
    for batch in images.batches(store.done, batch_size):
        pending.extend(batch)
        seen += len(batch)
        if seen > count:
            break
        while len(pending) >= batch_size:
            yield pending[:batch_size]
            del pending[:batch_size]
    if seen != count:
        store.done = 0  # which rows are whose is not known
        raise wrong_count(images, "more" if seen > count else seen)
    if pending:
        yield pending


class _Memory:
    """Features in memory.

    Attributes:
        shared: whether all processes see what one of them writes.
    """

    shared = False

    def __init__(self, shapes: dict[str, tuple]):
        self.shapes, self.done = shapes, 0
        self.complete = False
        self.arrays: dict[str, np.ndarray] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Makes ready for rows."""
        self.arrays = {name: np.empty(shape, np.float32) for name, shape in self.shapes.items()}
        yield

    def append(self, features: np.ndarray, logits: np.ndarray | None) -> None:
        rows = slice(self.done, self.done + len(features))
        for name, values in (("features", features), ("logits", logits)):
            if values is not None:
                self.arrays[name][rows] = values
        self.done = rows.stop  # only now: an interrupted batch is extracted again

    def features(self) -> Features:
        return Features(self.arrays["features"], self.arrays.get("logits"))


class _Folder(_Memory):
    """Features in a folder: features.npy, logits.npy, and progress.json, which counts the rows that
    are certain. Whoever writes them holds a lock, which the system releases if the process dies.
    """

    shared = True

    def __init__(
        self, cache: Path, images: ImageSet, extractor: Extractor, shapes: dict[str, tuple]
    ):
        super().__init__(shapes)
        description = {
            "format": CACHE_FORMAT,
            "images": images.digest(),
            "count": len(images),
            "extractor": extractor.describe(),
        }
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        self._store = FolderStore(cache / digest[:16], "The cached features are")
        self.description = {**description, "name": images.name}
        self._count = len(images)
        self.done = self._read_progress()
        self.complete = self.done == self._count

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Opens the files for writing, and notes what was written however that ends."""
        with self._store.writing(_IN_USE):
            self.done = self._read_progress()  # another process may have gone on
            mode = "r+" if self.done else "w+"
            self.arrays = {name: self._open(name, mode) for name in self.shapes}
            self._noted, self._noted_at = self.done, time.monotonic()
            try:
                yield
            finally:
                if self._noted != self.done:
                    self._note()

    def _read_progress(self) -> int:
        """The number of rows that are certain."""
        if not (self._store.folder / "progress.json").exists():
            return 0
        with self._store.reading():
            done = self._store.read("progress.json")["done"]
            if type(done) is not int or not 0 <= done <= self._count:
                raise ValueError(f"progress.json tells of {done!r} rows of {self._count}")
        return done

    def _open(self, name: str, mode: str) -> np.memmap:
        file, shape = f"{name}.npy", self.shapes[name]
        if mode == "w+":
            return np.lib.format.open_memmap(self._store.folder / file, mode, np.float32, shape)
        with self._store.reading():
            return self._store.open_array(file, shape, "float32", mode)

    def append(self, features: np.ndarray, logits: np.ndarray | None) -> None:
        super().append(features, logits)
        # The last note is written when the set has said that there are no more images.
        waited = time.monotonic() - self._noted_at
        if self.done < self._count and waited >= _SECONDS_BETWEEN_NOTES:
            self._note()

    def _note(self) -> None:
        """Writes the rows to disk, then their number."""
        for array in self.arrays.values():
            array.flush()
        note = {"done": self.done, **self.description}
        write_json(self._store.folder / "progress.json", note, indent=2)
        self._noted, self._noted_at = self.done, time.monotonic()

    def features(self) -> Features:
        self.arrays = {name: self._open(name, "r") for name in self.shapes}
        return super().features()


def extract_in_rounds(
    images: ImageSet, extractor: Extractor, done: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields features and logits of the images from `done` on, in their order."""
    processes = sharing()
    described = (images.digest(), extractor.describe(), batch_size, images.batch_size)
    processes.check_same("images and extractor", described)
    count, least = len(images), images.batch_size
    # All of what the set makes at once, and not so much that another process has nothing to do.
    size = max(1, batch_size // least) * least
    size = min(size, max(least, -(-(count - done) // processes.count)))

    def work(own: range) -> tuple[np.ndarray, np.ndarray | None]:
        part = _read(images, own)
        starts = range(0, len(part), batch_size)
        features, logits = zip(*(extractor(part[i : i + batch_size]) for i in starts), strict=True)
        return np.concatenate(features), np.concatenate(logits) if extractor.num_logits else None

    tasks = [range(i, min(i + size, count)) for i in range(done, count, size)]
    yield from share(tasks, work)


def wrong_count(images: ImageSet, seen: int | str) -> ValueError:
    """Returns the error about a set that yields more or fewer images than it says."""
    return ValueError(
        f"A set must yield as many images as its len() says, {len(images)}. "
        f"Received: images {images.name!r}, which yield {seen}"
    )


def _read(images: ImageSet, own: range) -> list[np.ndarray]:
    """The images of these places; of the last ones it is seen that no others follow."""
    part: list[np.ndarray] = []
    count = len(images)
    for batch in images.batches(own.start, len(own)):
        part.extend(batch)
        if len(part) > len(own) or (len(part) == len(own) and own.stop < count):
            break
    if len(part) < len(own) or (len(part) > len(own) and own.stop == count):
        raise wrong_count(images, "more" if len(part) > len(own) else own.start + len(part))
    return part[: len(own)]

"""Encodes images into a store of latents, goes on where it was stopped, and checks the store."""

import contextlib
import os
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_cdiff.autoencoders import open_autoencoder
from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import FolderLock, file_digest, write_whole
from keras_cdiff.data.captions import CaptionEmbeddings
from keras_cdiff.data.latent_store import (
    IN_USE,
    PROGRESS,
    find_store,
    keep_autoencoder,
    make_request,
    note,
)
from keras_cdiff.data.latents import INDEX, LatentSource
from keras_cdiff.data.pipeline import prepare_image
from keras_cdiff.data.source import Source
from keras_cdiff.distribution import share, sharing

if TYPE_CHECKING:
    from keras_cdiff.autoencoders import Autoencoder


def encode_source(
    source: Source,
    autoencoder: "Autoencoder",
    image_size: int,
    folder: str | os.PathLike,
    batch_size: int = 16,
    mirrored: bool = True,
    shard_size: int = 1024,
    progress: bool = True,
) -> LatentSource:
    """Writes the moments of the latents of all images of a source, as `LatentSource` reads them.

    Images are prepared by `prepare_image` and encoded as RGB. The moments are kept as float16:
    standard deviations below its least positive number, 6e-8, become 0. A file is written whole or
    not at all and then noted, so that a call that was interrupted at any moment goes on after the
    last noted one when it is repeated, and ends with the same bytes. A finished store is opened.

    Under `distribution.shared_by` each process writes a file at a time. The first alone notes them,
    and keeps all others out of the store; the bytes are those of one process, and any number of
    processes goes on where others stopped.

    A copy of an autoencoder of the kind "kl" is kept in the store.

    Args:
        source: The images, with their labels and captions.
        autoencoder: The network.
        image_size: The side of the images in pixels, a multiple of the autoencoder's factor.
        folder: The store; it is made if missing.
        batch_size: Images that the network sees at once.
        mirrored: Whether the images mirrored left to right are encoded as well, for training with
            flips: an encoder does not commute with mirroring.
        shard_size: Images in a file.
        progress: Whether a progress bar over the images is shown, by the first process.

    Returns:
        The latents.

    Raises:
        ValueError: If an argument is out of range, an image cannot be read, moments exceed float16,
            or the folder is in use, is damaged or holds something else.
        OSError: If the system does not let a file be read or written.
        LostPeer: If another of several processes has failed or ended.
    """
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        check_integer(name, value, 1)
    if isinstance(source, LatentSource):
        raise ValueError(
            f"Latents are made of images; give the source {source.source_name!r}. "
            f"Received: source={source.name!r}"
        )
    check_integer("image_size", image_size, autoencoder.factor)
    if image_size % autoencoder.factor:
        raise ValueError(
            f"image_size must be a multiple of {autoencoder.factor}, the autoencoder's factor. "
            f"Received: image_size={image_size}"
        )
    request = make_request(source, autoencoder, image_size, bool(mirrored), shard_size)
    folder, processes = Path(folder), sharing()
    if processes.count > 1:
        decisive = (request["source_digest"], autoencoder.fingerprint(), image_size, mirrored)
        processes.check_same("request for latents", (*decisive, shard_size, batch_size))
    with contextlib.ExitStack() as held:

        def begin(folder: Path) -> tuple[dict, list[dict], bool]:
            held.enter_context(FolderLock(folder, IN_USE))
            begun = find_store(folder, request)
            if not begun[2]:
                keep_autoencoder(autoencoder, folder)
            return begun

        request, shards, finished = next(share([folder], begin))
        if not finished:
            bar = None
            if progress and processes.first:
                bar = keras.utils.Progbar(len(source), unit_name="image")
            _write_in_rounds(source, autoencoder, request, shards, folder, batch_size, bar)
            if processes.first:
                _write_index(source, request, shards, folder)
        if processes.first:
            (folder / PROGRESS).unlink(missing_ok=True)
    processes.barrier()  # now the others find the index
    return LatentSource(folder)


def _write_in_rounds(
    source: Source,
    autoencoder: "Autoencoder",
    request: dict,
    shards: list[dict],
    folder: Path,
    batch_size: int,
    bar: keras.utils.Progbar | None,
) -> None:
    """Writes the shards that are missing, one by each process at a time, and appends to `shards`
    what the index says of each; those that are noted are the first ones.
    """
    processes = sharing()
    missing = range(len(shards), -(-request["count"] // request["shard_size"]))
    numbers = missing[processes.index :: processes.count]
    own = _write_shards(source, autoencoder, request, folder, numbers, batch_size, bar)
    for shard in share(missing, lambda number: next(own)):
        shards.append(shard)
        if processes.first:
            note(folder / PROGRESS, {**request, "shards": shards})
        if bar is not None and processes.count > 1:
            bar.update(sum(shard["count"] for shard in shards))


def _write_shards(
    source: Source,
    autoencoder: "Autoencoder",
    request: dict,
    folder: Path,
    numbers: range,
    batch_size: int,
    bar: keras.utils.Progbar | None,
) -> Iterator[dict]:
    """Writes the shards of these numbers and yields what the index says of each."""
    count, shard_size = request["count"], request["shard_size"]
    views = 2 if request["mirrored"] else 1
    side, channels = request["latent_size"], request["channels"]
    # A batch lies in one shard: then its number and not the start of the process decides it.
    places = [
        range(start, min(start + batch_size, begin + shard_size, count))
        for begin in (number * shard_size for number in numbers)
        for start in range(begin, min(begin + shard_size, count), batch_size)
    ]
    batches = _prepared(source, places, request["image_size"], batch_size)
    for number in numbers:
        begin = number * shard_size
        length = min(shard_size, count - begin)
        moments = np.empty((length, views, side, side, 2 * channels), "<f2")
        filled = 0
        while filled < length:
            batch, images = next(batches)
            rows = moments[filled : filled + len(batch)]
            rows[:, 0] = _half(autoencoder.moments(images), batch)
            if views == 2:
                mirrored = np.ascontiguousarray(images[:, :, ::-1])
                rows[:, 1] = _half(autoencoder.moments(mirrored), batch)
            filled += len(batch)
            if bar is not None:
                bar.update(begin + filled)
        path = folder / f"moments-{number:05d}.npy"
        write_whole(path, lambda temporary, moments=moments: np.save(temporary, moments))
        yield {"file": path.name, "count": length, "sha256": file_digest(path)}


def _prepared(
    source: Source, places: list[range], image_size: int, batch_size: int
) -> Iterator[tuple[range, np.ndarray]]:
    """Yields batches of prepared images, always `batch_size` of them: a short one is filled up.

    Threads prepare the next batch while the network works on one; decoding releases the lock.
    """

    def read(place: int) -> np.ndarray:
        try:
            return prepare_image(source[place]["image"], image_size)
        except Exception as error:
            raise ValueError(
                "An image cannot be read: restore it, then repeat the command; what was encoded is "
                f"kept. Received: example {place} of {source.name!r} "
                f"({type(error).__name__}: {error})"
            ) from error

    with ThreadPool(min(4, os.cpu_count() or 1)) as pool:
        coming = None
        for batch, following in zip(places, [*places[1:], None], strict=True):
            images = np.stack((coming or pool.map_async(read, batch)).get())
            if following is not None:
                coming = pool.map_async(read, following)
            missing = batch_size - len(images)
            yield batch, np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])


def _half(moments: np.ndarray, batch: range) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = moments[: len(batch)].astype("<f2")
    finite = np.isfinite(half).all(axis=(1, 2, 3))
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            "The moments of latents must be finite and below 65,504: the autoencoder does not suit "
            f"the image, or its weights are damaged. Received: image {batch[row]}, with moments up "
            f"to {np.abs(moments[row]).max():g}"
        )
    return half


def _write_index(source: Source, request: dict, shards: list[dict], folder: Path) -> None:
    labels, captions = source.labels(), source.captions()
    parts = {"labels": None, "captions": None}
    if labels is not None:
        path = folder / "labels.npy"
        write_whole(path, lambda temporary: np.save(temporary, labels.astype("<i4")))
        parts["labels"] = {"file": path.name, "sha256": file_digest(path)}
    if captions is not None:
        path = folder / "captions.json"
        note(path, [list(each) for each in captions], indent=None)
        parts["captions"] = {"file": path.name, "sha256": file_digest(path)}
    note(folder / INDEX, {**request, "shards": shards, **parts})


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

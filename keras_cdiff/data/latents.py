"""Latents that an autoencoder made of images, kept on disk as mean and standard deviation.

A store is a folder of
    index.json          what is in it, of which images, by which autoencoder; sha256 of each file
    moments-00000.npy   float16 (n, V, h, w, 2 C), mean and standard deviation side by side; V is 2
                        where the second view is that of the image mirrored left to right
    labels.npy          int32 (N,), if the images have labels
    captions.json       a list of strings for each image, if the images have captions
    autoencoder         a copy of the autoencoder, if it is one that was trained here
    text                embeddings of the captions, if `embed_captions` made some; see
                        `caption_folder`
"""

import bisect
import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np

from keras_cdiff.common.store import FolderStore
from keras_cdiff.data.source import Source

FORMAT = 1
INDEX = "index.json"
COPY = "kl:autoencoder"  # the name, in the index, of an autoencoder that lies in the store

# Reading this much takes a second or two; more is checked with read_all alone.
_CHECKED_AT_OPENING = 2**30


def latent_store(folder: str | os.PathLike, name: str | None = None) -> FolderStore:
    """Returns the folder of latents, finished or not; `name` is what errors call it."""
    return FolderStore(folder, "The latents are", " and encode the images anew", FORMAT, name)


class LatentSource(Source):
    """The latents of a store, made by `encode_source`, read by index.

    An example is a dict of "moments", float16 (V, h, w, 2 C): mean and standard deviation of the
    latent, V being 2 if there is a second one of the mirrored image; and of "label" and "caption"
    as in `Source`. `draw_latent` makes a latent of it.

    Opening it checks the size of each file, and the checksums of labels and captions, and of all
    if it holds less than 1 GiB. Examples may be read by several threads.

    Args:
        folder: The store.
        name: What the source is called in logs and errors; "latents:" and the folder by default.
        read_all: Whether the checksums of all files are checked, however many there are.

    Attributes:
        folder: The store, a `Path`.
        latent_size: The side h = w of the latents.
        channels: Their channels C, never 1 or 3.
        mirrored: Whether there are latents of the mirrored images.
        image_size: The side of the images in pixels, before they were encoded.
        source_name: The source of the images.
        autoencoder: What the store keeps of the autoencoder: "name", by which it is opened,
            "fingerprint", "factor", "channels" and "scale".
        keeps_autoencoder: Whether a copy of the autoencoder lies in the store.

    Raises:
        ValueError: If the store is not complete, or damaged.
        OSError: If the system does not let a file be read.
    """

    is_latent = True

    def __init__(self, folder: str | os.PathLike, name: str | None = None, read_all: bool = False):
        self.folder = Path(folder)
        name = name or f"latents:{self.folder}"
        store = latent_store(folder, name)
        self._bytes = _read_index_bytes(self.folder, name)
        with store.reading():
            index = store.parse(self._bytes)
            shards = _Shards(store, index)
            parts = {part: index[part] for part in ("labels", "captions") if index[part]}
            small = {part["file"]: part["sha256"] for part in parts.values()}
            files = {shard["file"]: shard["sha256"] for shard in index["shards"]} | small
            self.latent_size, self.channels = index["latent_size"], index["channels"]
            self.image_size, self.mirrored = index["image_size"], index["mirrored"]
            self.source_name, self.autoencoder = index["source"], dict(index["autoencoder"])
            self.keeps_autoencoder = self.autoencoder["name"] == COPY
            self.autoencoder["name"] = self.autoencoder_name()
            large = shards.bytes >= _CHECKED_AT_OPENING and not read_all
            for file, sha256 in (small if large else files).items():
                store.check(file, sha256)
            labels = captions = None
            if "labels" in parts:
                labels = np.load(self.folder / parts["labels"]["file"])
            if "captions" in parts:
                captions = json.loads((self.folder / parts["captions"]["file"]).read_text("utf-8"))
            class_names, num_classes = index["class_names"], index["num_classes"]
        super().__init__(name, shards, labels, captions, class_names)
        self.num_classes = num_classes

    def __getitem__(self, index: int) -> dict:
        example = super().__getitem__(index)
        example["moments"] = example.pop("image")
        return example

    def digest(self) -> str:
        """Returns the sha256 of the index, which names that of every file."""
        return hashlib.sha256(self._bytes).hexdigest()

    def autoencoder_name(self) -> str:
        """Returns the name by which the autoencoder is opened: that of the copy in the store if it
        is one that was trained here, wherever the store has been moved.
        """
        if self.keeps_autoencoder:
            return f"kl:{self.folder / 'autoencoder'}"
        return self.autoencoder["name"]


def draw_latent(moments: np.ndarray, rng: np.random.Generator, mirror: bool = False) -> np.ndarray:
    """Draws a latent of one image.

        latent = mean + standard deviation * noise

    Args:
        moments: (V, h, w, 2 C), mean and standard deviation side by side; V is 2 where the second
            is of the mirrored image.
        rng: The source of the noise.
        mirror: Whether it is a latent of the mirrored image.

    Returns:
        float32 (h, w, C), in the units of the autoencoder's scaled latents.

    Raises:
        ValueError: If there are no moments of the mirrored image, and it is wanted.
    """
    if mirror and len(moments) < 2:
        raise ValueError(
            "There is no latent of the mirrored image: encode the images anew with mirrored=True. "
            f"Received: mirror={mirror}, moments of shape {np.shape(moments)}"
        )
    view = np.asarray(moments[int(mirror)], np.float32)
    channels = view.shape[-1] // 2
    latent = rng.standard_normal((*view.shape[:-1], channels), np.float32)
    latent *= view[..., channels:]
    latent += view[..., :channels]
    return latent


class _Shards:
    """The moments in the files of a store, as one sequence.

    Each example is read by a separate call: thousands of mapped files would be more than a
    process may hold open, and one that was cut off would end the process.
    """

    def __init__(self, store: FolderStore, index: dict):
        side, channels = index["latent_size"], index["channels"]
        self.shape = (2 if index["mirrored"] else 1, side, side, 2 * channels)
        self._numbers = int(np.prod(self.shape))
        self._paths = [store.folder / shard["file"] for shard in index["shards"]]
        counts = [shard["count"] for shard in index["shards"]]
        self._starts = [0, *itertools.accumulate(counts)]
        if self._starts[-1] != index["count"]:
            raise ValueError(f"the files hold {self._starts[-1]} images of {index['count']}")
        self._offsets = [
            store.open_array(path.name, (count, *self.shape), "<f2").offset
            for path, count in zip(self._paths, counts, strict=True)
        ]
        self.bytes = index["count"] * 2 * self._numbers

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        shard = bisect.bisect_right(self._starts, index) - 1
        place = self._offsets[shard] + 2 * self._numbers * (index - self._starts[shard])
        moments = np.fromfile(self._paths[shard], "<f2", self._numbers, offset=place)
        if len(moments) != self._numbers:
            raise ValueError(
                "A file of the latents was cut off since it was opened: encode the images anew. "
                f"Received: {str(self._paths[shard])!r}"
            )
        return moments.reshape(self.shape)


def _read_index_bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / INDEX).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        begun = (folder / "progress.json").exists()
        hint = "they are not all there yet: repeat" if begun else "make them with"
        raise ValueError(
            f"latents:PATH takes a folder of latents with {INDEX}; {hint} apps/encode.py. "
            f"Received: {name!r} ({error.strerror})"
        ) from error

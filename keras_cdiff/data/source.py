"""Images read by index, with what belongs to each: a label, captions."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np


class Source:
    """A finite sequence of examples read by index, checked when it is opened.

    An example is a dict of "image", uint8 (H, W, C) with C 1 (grey), 3 (RGB) or 4 (RGBA);
    "label", int32 in [0, num_classes), if `num_classes` > 0; and "caption", str, if `has_captions`:
    the first of its captions.

    Args:
        name: What the source is called in logs and errors.
        images: A sequence of uint8 images, checked already.
        labels: Integers (N,), one per image, or None.
        captions: N strings, one per image; or (N, K), those that are "" being left out; or N lists
            or tuples of strings; or None.
        class_names: The name of each class, in label order; it may be empty.

    Raises:
        ValueError: If labels or captions do not fit the images.
    """

    is_latent = False  # what the examples hold

    def __init__(
        self,
        name: str,
        images: Sequence[np.ndarray],
        labels: np.ndarray | None = None,
        captions: np.ndarray | Sequence[str] | Sequence[Sequence[str]] | None = None,
        class_names: Sequence[str] = (),
    ):
        self.name = name
        self.class_names = tuple(str(class_name) for class_name in class_names)
        self.num_classes = len(self.class_names)
        self.has_captions = captions is not None
        self._images, self._labels, self._captions = images, labels, None
        if captions is not None:
            self._captions = _checked_captions(name, captions, len(images))
        if labels is not None:
            self._labels = _checked_labels(name, labels, len(images), self.num_classes)
            self.num_classes = self.num_classes or int(self._labels.max()) + 1
        elif self.class_names:
            raise ValueError(
                f"{name!r} has class names but no labels; add an int32 array `labels`, one "
                f"per image, or leave the names out. Received: class_names={self.class_names}"
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name!r} has {len(self)} examples. Received: index={index}")
        example = {"image": self._images[index]}
        if self._labels is not None:
            example["label"] = self._labels[index]
        if self._captions is not None:
            example["caption"] = self._captions[index][0]
        return example

    def labels(self) -> np.ndarray | None:
        """Returns the label of every example, int32 (N,), or None."""
        return self._labels

    def captions(self) -> list[tuple[str, ...]] | None:
        """Returns the captions of every example, one or several each, or None."""
        return self._captions

    def digest(self) -> str:
        """Returns a sha256 that another content has not: what is known by it need not be read.

        Of files that are decoded when they are read it is over paths, sizes and times of change.
        """
        sha = hashlib.sha256(repr((len(self), self.class_names)).encode())
        sha.update(self._images_digest().encode())
        sha.update(b"none" if self._labels is None else self._labels.tobytes())
        sha.update(b"none" if self._captions is None else json.dumps(self._captions).encode())
        return sha.hexdigest()

    def _images_digest(self) -> str:
        if hasattr(self._images, "digest"):
            return self._images.digest()
        if not isinstance(self._images, np.ndarray):
            sha = hashlib.sha256(b"images one by one")
            for image in self._images:
                sha.update(f"{np.shape(image)} ".encode())
                sha.update(np.ascontiguousarray(image))
            return sha.hexdigest()
        sha = hashlib.sha256(repr(self._images.shape).encode())
        for start in range(0, len(self), 256):  # of a memory map a part at a time
            sha.update(np.ascontiguousarray(self._images[start : start + 256]))
        return sha.hexdigest()

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self)} examples, {self.num_classes} classes)"


class ArraySource(Source):
    """A source over arrays, in memory or mapped into it.

    Args:
        name: What the source is called in logs and errors.
        images: uint8 (N, H, W, C), C being 1, 3 or 4.
        labels: Integers (N,) from 0, below the number of `class_names` if there are any; or None.
        captions: N strings; or (N, K), those that are "" being left out; or N lists of strings; or
            None.
        class_names: The name of each class, in label order; it may be empty.

    Raises:
        ValueError: If an array has the wrong rank, type, length or range.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        captions: np.ndarray | Sequence[str] | Sequence[Sequence[str]] | None = None,
        class_names: Sequence[str] = (),
    ):
        images = np.asarray(images)
        _check_image_array(name, images)
        super().__init__(name, images, labels, captions, class_names)


def _check_image_array(name: str, images: np.ndarray) -> None:
    expected = f"The images of {name!r} must be one uint8 array (N, H, W, C), C being 1, 3 or 4"
    received = f"Received: images of shape {images.shape}, dtype {images.dtype}"
    if images.dtype != np.uint8:
        if images.dtype.kind == "f" and images.size:
            finite = images[np.isfinite(images)]
            if finite.size < images.size:
                received += f", {images.size - finite.size} values not finite"
            if finite.size:
                received += f", values in [{finite.min():g}, {finite.max():g}]"
        raise ValueError(
            f"{expected}. Convert values in [-1, 1] with np.rint((images + 1) * 127.5)"
            ".astype(np.uint8), values in [0, 1] with np.rint(images * 255).astype(np.uint8). "
            + received
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{expected}. Give grey images a last axis with images[..., None]; move channels "
            f"last with images.transpose(0, 2, 3, 1). {received}"
        )
    if images.size == 0:
        raise ValueError(f"{expected}, and at least one image of at least one pixel. {received}")


def _checked_labels(name: str, labels: np.ndarray, length: int, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (length,):
        raise ValueError(
            f"The labels of {name!r} must be {length} integers, one per image, in an array of "
            f"shape ({length},). Received: labels of shape {labels.shape}, dtype {labels.dtype}"
        )
    low, high = int(labels.min()), int(labels.max())
    limit = num_classes or 2**31 - 1
    if low < 0 or high >= limit:
        raise ValueError(
            f"The labels of {name!r} must lie in [0, {limit}), the number of class names if there "
            f"are any; renumber the labels from 0. Received: labels in [{low}, {high}]"
        )
    return labels.astype(np.int32)


def _checked_captions(
    name: str, captions: np.ndarray | Sequence[str] | Sequence[Sequence[str]], length: int
) -> list[tuple[str, ...]]:
    """The captions of each image, of which there is one at least."""
    if isinstance(captions, np.ndarray) and captions.dtype != object:
        fits = captions.dtype.kind == "U" and captions.ndim in (1, 2) and captions.size
        if not fits or len(captions) != length:
            raise ValueError(
                f"The captions of {name!r} must be {length} strings, one per image, or as many "
                "rows of several, filled up with empty ones. "
                f"Received: captions of shape {captions.shape}, dtype {captions.dtype}"
            )
        captions = captions.reshape(length, -1).tolist()
    rows = captions.tolist() if isinstance(captions, np.ndarray) else captions
    if isinstance(rows, list | tuple) and all(isinstance(text, str) for text in rows):
        rows = [(text,) for text in rows]
    elif not isinstance(rows, list | tuple) or not all(map(_are_texts, rows)):
        several = rows if isinstance(rows, list | tuple) else (rows,)
        wrong = next(row for row in several if not _are_texts(row))
        raise ValueError(
            f"The captions of {name!r} must be a string an image, or a list of strings an image. "
            f"Received: captions with {wrong!r:.200}"
        )
    if len(rows) != length:
        raise ValueError(
            f"There must be captions of each of the {length} images of {name!r}. "
            f"Received: captions of {len(rows)}"
        )
    return [tuple(str(text) for text in texts if text) or ("",) for texts in rows]


def _are_texts(row: object) -> bool:
    return isinstance(row, list | tuple) and all(isinstance(text, str) for text in row)

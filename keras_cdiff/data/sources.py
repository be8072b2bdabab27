"""Random-access sources of images, named by one string: `emoji`, `npz:`, `folder:` and `tfds:`."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_cdiff.data.batch_file import read_npz
from keras_cdiff.data.image_folder import read_image_folder


class Source:
    """A finite sequence of examples read by index, checked when it is opened.

    An example is a dict of "image", uint8 (H, W, C) with C 1 (grey), 3 (RGB) or 4 (RGBA);
    "label", int32 in [0, num_classes), if `num_classes` > 0; and "caption", str, if `has_captions`.

    Args:
        name: What the source is called in logs and errors.
        images: A sequence of uint8 images, checked already.
        labels: Integers (N,), one per image, or None.
        captions: Strings (N,), one per image, or None.
        class_names: The name of each class, in label order; it may be empty.

    Raises:
        ValueError: If labels or captions do not fit the images.
    """

    def __init__(
        self,
        name: str,
        images: Sequence[np.ndarray],
        labels: np.ndarray | None = None,
        captions: np.ndarray | None = None,
        class_names: Sequence[str] = (),
    ):
        self.name = name
        self.class_names = tuple(str(class_name) for class_name in class_names)
        self.num_classes = len(self.class_names)
        self.has_captions = captions is not None
        self._images, self._labels, self._captions = images, labels, captions
        if captions is not None:
            self._captions = captions = np.asarray(captions)
            if captions.dtype.kind != "U" or captions.shape != (len(images),):
                raise ValueError(
                    f"The captions of {name!r} must be {len(images)} strings, one per image. "
                    f"Received: captions of shape {captions.shape}, dtype {captions.dtype}"
                )
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
            example["caption"] = str(self._captions[index])
        return example

    def labels(self) -> np.ndarray | None:
        """Returns the label of every example, int32 (N,), or None."""
        return self._labels

    def digest(self) -> str:
        """Returns a sha256 that another content has not: what is known by it need not be read.

        Of files that are decoded when they are read it is over paths, sizes and times of change.
        """
        sha = hashlib.sha256(repr((len(self), self.class_names)).encode())
        sha.update(self._images_digest().encode())
        for values in (self._labels, self._captions):
            sha.update(b"none" if values is None else np.ascontiguousarray(values).tobytes())
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


def open_source(spec: str = "emoji", data_dir: str | os.PathLike | None = None) -> Source:
    """Opens and checks the source of images that a string names.

    `emoji`: the embedded set, 1,636 RGB emoji of 32 x 32 in 8 classes, each with its name.
    `npz:PATH`: arrays `images` (or `arr_0`) and, if wanted, `labels` (or `arr_1`), `captions`,
    `class_names`; see `ArraySource`. Images that are not compressed stay on disk.
    `folder:PATH`: one subfolder per class, labelled in the order of their names; or images
    without labels; or images named in a metadata.csv with columns file and caption.
    `tfds:NAME[/CONFIG][:SPLIT]`: a TensorFlow Datasets build in array_record format, already
    prepared; SPLIT is "train" unless given. Uses its features image and, if present, label.

    Args:
        spec: The source, in one of the forms above.
        data_dir: For `tfds:`, the folder of prepared data sets. By default the environment
            variable TFDS_DATA_DIR, then the TFDS default.

    Returns:
        The source. `.name` is `spec`.

    Raises:
        ValueError: If the source cannot be read whole, or is not what it should be.
    """
    if spec == "emoji":
        return _open_npz(spec, str(Path(__file__).parent / "emoji32.npz"))
    scheme, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if scheme not in ("npz", "folder", "tfds") or not rest:
        raise ValueError(
            "A source is emoji, npz:PATH, folder:PATH or tfds:NAME[/CONFIG][:SPLIT]. "
            f"Received: source={spec!r}"
        )
    if scheme == "npz":
        return _open_npz(spec, rest)
    if scheme == "folder":
        return Source(spec, *read_image_folder(rest))
    name, _, split = rest.partition(":")
    return _TfdsSource(spec, name, split or "train", data_dir or os.environ.get("TFDS_DATA_DIR"))


class ArraySource(Source):
    """A source over arrays, in memory or mapped into it.

    Args:
        name: What the source is called in logs and errors.
        images: uint8 (N, H, W, C), C being 1, 3 or 4.
        labels: Integers (N,) from 0, below the number of `class_names` if there are any; or None.
        captions: Strings (N,), or None.
        class_names: The name of each class, in label order; it may be empty.

    Raises:
        ValueError: If an array has the wrong rank, type, length or range.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        captions: np.ndarray | None = None,
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


def _open_npz(name: str, path: str) -> ArraySource:
    wanted = ("images", "arr_0", "labels", "arr_1", "captions", "class_names")
    arrays, found = read_npz(path, wanted, mapped=("images", "arr_0"))
    if "images" not in arrays and "arr_0" not in arrays:
        raise ValueError(
            "The file must hold an array `images` (or `arr_0`); write it with "
            f"np.savez(path, images=...). It holds {found}. Received: source={name!r}"
        )
    images = arrays.get("images", arrays.get("arr_0"))
    class_names = arrays.get("class_names", np.array([], dtype=str))
    if class_names.dtype.kind != "U" or class_names.ndim != 1:
        raise ValueError(
            f"The class names of {name!r} must be strings in an array of rank 1. Received: "
            f"class_names of shape {class_names.shape}, dtype {class_names.dtype}"
        )
    labels = arrays.get("labels", arrays.get("arr_1"))
    return ArraySource(name, images, labels, arrays.get("captions"), class_names)


class _TfdsSource(Source):
    """A split of a prepared TensorFlow Datasets build, read without TensorFlow."""

    def __init__(self, spec: str, name: str, split: str, data_dir: str | os.PathLike | None):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder

        # Files alone, never the data set's own code: that would look for it on the network.
        try:
            builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
            data = builder.as_data_source(split=split)
        except (tfds.core.DatasetNotFoundError, NotImplementedError) as error:
            place = "" if data_dir is None else f"data_dir={str(data_dir)!r}, "
            raise ValueError(
                f"TFDS must hold {name!r} prepared in array_record format under "
                f"{data_dir or 'its default folder'}. Prepare it, in a folder without another "
                'format of it, with: python -c "import tensorflow_datasets as tfds; '
                f"tfds.builder({name!r}, {place}file_format='array_record')"
                f'.download_and_prepare()". The error was: {str(error).strip()} '
                f"Received: source={spec!r}"
            ) from error
        except ValueError as error:
            raise ValueError(
                "tfds:NAME[/CONFIG][:SPLIT] takes Python names, and a split of the data set or a "
                "part of one, as in train[:80%], that is not empty. The error was: "
                f"{str(error).strip()} Received: source={spec!r}"
            ) from error
        split_info = builder.info.splits[split]
        self._content = (builder.info.full_name, split, split_info.shard_lengths, len(data))
        self._folder = Path(os.fspath(builder.data_path))
        features = builder.info.features
        features = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
        image, label = features.get("image"), features.get("label")
        if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
            raise ValueError(
                "A TFDS data set must have a feature `image` of 8-bit images; choose another one. "
                f"It has {features}. Received: source={spec!r}"
            )
        super().__init__(spec, data)
        if isinstance(label, tfds.features.ClassLabel):
            self.num_classes = label.num_classes
            self.class_names = tuple(label.names) if label.names else ()
            undecoded = {"image": tfds.decode.SkipDecoding()}
            self._undecoded = builder.as_data_source(split=split, decoders=undecoded)
        self[0]  # a split whose labels are withheld fails now

    def labels(self) -> np.ndarray | None:
        if not self.num_classes:
            return None
        return np.array([self._undecoded[i]["label"] for i in range(len(self))], dtype=np.int32)

    def _images_digest(self) -> str:
        files = [(path, path.stat()) for path in sorted(self._folder.iterdir())]
        changes = [(path.name, status.st_size, status.st_mtime_ns) for path, status in files]
        return repr((self._content, str(self._folder.resolve()), changes))

    def __getitem__(self, index: int) -> dict:
        record = super().__getitem__(index)["image"]  # TFDS decodes image and label at once
        example = {"image": record["image"]}
        if self.num_classes:
            example["label"] = np.int32(record["label"])
            if not 0 <= example["label"] < self.num_classes:
                raise ValueError(
                    f"The labels of {self.name!r} must lie in [0, {self.num_classes}); choose a "
                    f"split with labels. Received: label={example['label']} at index {index}"
                )
        return example

"""Sources of images, named by one string such as `emoji` or `folder:PATH`."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from keras_cdiff.common.checks import parse_name
from keras_cdiff.data.batch_file import read_npz
from keras_cdiff.data.latents import LatentSource
from keras_cdiff.data.source import ArraySource, Source

IMAGE_FORMS = ("emoji", "npz:PATH", "folder:PATH", "tfds:NAME[/CONFIG][:SPLIT]")


def open_source(spec: str = "emoji", data_dir: str | os.PathLike | None = None) -> Source:
    """Opens and checks the source of images that a string names.

    `emoji`: the embedded set, 1,636 RGB emoji of 32 x 32 in 8 classes, each with its name.
    `npz:PATH`: arrays `images` (or `arr_0`) and, if wanted, `labels` (or `arr_1`), `captions`,
    `class_names`; see `ArraySource`. Images that are not compressed stay on disk.
    `folder:PATH`: one subfolder per class, labelled in the order of their names; or images
    without labels; or images named in a metadata.csv with columns file and caption, a row for each
    caption.
    `tfds:NAME[/CONFIG][:SPLIT]`: a TensorFlow Datasets build in array_record format, already
    prepared; SPLIT is "train" unless given. Uses its feature image and, if present, label, and
    captions (each with a text) or caption.

    `latents:PATH`: a folder of latents that apps/encode.py made of images; see `LatentSource`.

    Args:
        spec: The source, in one of the forms above.
        data_dir: For `tfds:`, the folder of prepared data sets. By default the environment
            variable TFDS_DATA_DIR, then the TFDS default.

    Returns:
        The source. `.name` is `spec`.

    Raises:
        ValueError: If the source cannot be read whole, or is not what it should be.
    """
    scheme, rest = parse_name("A source", (*IMAGE_FORMS, "latents:PATH"), "source", spec)
    if scheme == "emoji":
        return _open_npz(spec, str(Path(__file__).parent / "emoji32.npz"))
    if scheme == "latents":
        return LatentSource(rest, spec)
    if scheme == "npz":
        return _open_npz(spec, rest)
    if scheme == "folder":
        return Source(spec, *read_image_folder(rest))
    name, _, split = rest.partition(":")
    return TfdsSource(spec, name, split or "train", data_dir or os.environ.get("TFDS_DATA_DIR"))


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


_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image_folder(
    path: str | os.PathLike,
) -> tuple["ImageFiles", np.ndarray | None, list[tuple[str, ...]] | None, tuple[str, ...]]:
    """Reads what a folder holds, and checks every image in it.

    Args:
        path: A folder with one subfolder of images per class; or with images alone; or with a
            metadata.csv whose columns file and caption name images, relative to the folder; a file
            that several rows name is one image with several captions.

    Returns:
        The images, the labels (N,) or None, the captions of each image or None, and the class
        names: those of the subfolders, sorted, or ().

    Raises:
        ValueError: If the folder is missing or empty, or is laid out otherwise, or if an image
            cannot be read.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"There is no such folder; check the path. Received: folder={str(path)!r}")
    if (folder / "metadata.csv").is_file():
        paths, captions = _read_metadata(folder / "metadata.csv")
        return ImageFiles(paths), None, captions, ()
    paths = _image_paths(folder.iterdir())
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = {subfolder.name: _image_paths(subfolder.rglob("*")) for subfolder in subfolders}
    empty = [class_name for class_name, members in classes.items() if not members]
    if len(empty) == len(classes):
        if not paths:
            raise ValueError(
                f"The folder must hold images ({' '.join(_SUFFIXES)}), either in one subfolder "
                f"per class or all in the folder itself. Received: folder={str(path)!r}"
            )
        return ImageFiles(paths), None, None, ()
    if paths or empty:
        odd = f"images such as {paths[0].name!r} beside them" if paths else f"no image in {empty}"
        raise ValueError(
            "Images must lie either all in class subfolders, each holding some, or all in the "
            f"folder itself. It has class subfolders and {odd}. Received: folder={str(path)!r}"
        )
    labels = np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()])
    paths = [path for members in classes.values() for path in members]
    return ImageFiles(paths), labels, None, tuple(classes)


def _image_paths(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path for path in paths if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )


def _read_metadata(metadata: Path) -> tuple[list[Path], list[tuple[str, ...]]]:
    """The image paths and captions of metadata.csv, in the order of their first appearance."""
    try:
        with open(metadata, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"metadata.csv must be comma-separated text in UTF-8. The error was: {error}. "
            f"Received: file={str(metadata)!r}"
        ) from error
    if not rows or not {"file", "caption"} <= set(columns):
        raise ValueError(
            "metadata.csv must begin with a line naming the columns file and caption, and hold "
            f"a row per caption. Received: columns={columns}, rows={len(rows)}"
        )
    for line, row in enumerate(rows, start=2):
        if not row["file"] or not row["caption"] or not (metadata.parent / row["file"]).is_file():
            raise ValueError(
                f"Row {line} of metadata.csv must name an image file, relative to the folder, "
                f"and its caption. Received: file={row['file']!r}, caption={row['caption']!r}"
            )
    captions: dict[Path, list[str]] = {}
    for row in rows:
        captions.setdefault(metadata.parent / row["file"], []).append(row["caption"])
    return list(captions), [tuple(texts) for texts in captions.values()]


class ImageFiles:
    """A sequence of images decoded from files when they are read."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        with ThreadPool() as pool:
            for _ in pool.imap(_check_image_file, paths, chunksize=64):
                pass  # raises the first error

    def __len__(self) -> int:
        return len(self._paths)

    def digest(self) -> str:
        """Returns a sha256 over the files' paths, sizes and times of change."""
        sha = hashlib.sha256()
        for path in self._paths:
            status = path.stat()
            sha.update(repr((str(path.resolve()), status.st_size, status.st_mtime_ns)).encode())
        return sha.hexdigest()

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image, ImageOps

        path = self._paths[index]
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                grey = image.mode in ("1", "L")
                mode = "RGBA" if image.has_transparency_data else "L" if grey else "RGB"
                array = np.asarray(image.convert(mode))
        except Exception as error:  # it has changed since it was checked
            raise _unreadable(path, error) from error
        return array[..., None] if array.ndim == 2 else array


def _check_image_file(path: Path) -> None:
    """Fails where the file is not a whole image, decoding it only where nothing faster tells."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode = image.mode
            if image.format == "PNG":
                image.verify()  # reads every chunk and its checksum
            elif image.format != "JPEG" or not _ends_with(path, b"\xff\xd9"):
                image.load()
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise _unreadable(path, error) from error
    if mode.startswith(("I", "F")):
        raise ValueError(
            "An image must have 8 bits a channel; convert it to 8-bit grey or RGB. "
            f"Received: file={str(path)!r} of Pillow mode {mode!r}"
        )


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        "Pillow cannot read this image; mend it or take it out of the folder. The error was: "
        f"{error}. Received: file={str(path)!r}"
    )


def _ends_with(path: Path, marker: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(-len(marker), os.SEEK_END)
        return file.read() == marker


class TfdsSource(Source):
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
        undecoded = {"image": tfds.decode.SkipDecoding()}
        self._undecoded = builder.as_data_source(split=split, decoders=undecoded)
        self._caption_feature = _caption_feature(features)
        self.has_captions = self._caption_feature is not None
        if isinstance(label, tfds.features.ClassLabel):
            self.num_classes = label.num_classes
            self.class_names = tuple(label.names) if label.names else ()
        self._texts: list[tuple[str, ...]] | None = None
        self[0]  # a split whose labels are withheld fails now

    def labels(self) -> np.ndarray | None:
        if not self.num_classes:
            return None
        return np.array([self._undecoded[i]["label"] for i in range(len(self))], dtype=np.int32)

    def captions(self) -> list[tuple[str, ...]] | None:
        if self.has_captions and self._texts is None:
            self._texts = [self._captions_of(self._undecoded[i]) for i in range(len(self))]
        return self._texts

    def _captions_of(self, record: dict) -> tuple[str, ...]:
        texts = record[self._caption_feature]
        texts = texts["text"] if self._caption_feature == "captions" else [texts]
        return tuple(text.decode() for text in texts if text) or ("",)

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
        if self.has_captions:
            example["caption"] = self._captions_of(record)[0]
        return example


def _caption_feature(features: dict) -> str | None:
    """The feature that holds captions: a list of dicts with a text, or one text."""
    import tensorflow_datasets as tfds

    several = getattr(features.get("captions"), "feature", None)
    several = dict(several) if isinstance(several, tfds.features.FeaturesDict) else {}
    if isinstance(several.get("text"), tfds.features.Text):
        return "captions"
    return "caption" if isinstance(features.get("caption"), tfds.features.Text) else None

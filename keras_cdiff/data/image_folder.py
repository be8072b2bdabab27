"""A folder of images: its files, checked up front, and the labels or captions it gives them."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

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

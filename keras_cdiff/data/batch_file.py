"""Batches of images in one .npz file, as evaluators of generated images exchange them.

`arr_0` holds the images, uint8 (N, H, W, C), and `arr_1`, if it is there, their classes, integers
(N,): what `np.savez(path, images, labels)` writes.

Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, whose code's
samples and reference batches are such files.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_cdiff.common.checks import is_integer
from keras_cdiff.common.files import write_whole

# Images written at once, of an array that may not fit into memory.
_ROWS = 256

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member; the lengths of its name and extra field


def write_batch_file(
    path: str | os.PathLike,
    images: np.ndarray | Iterable[np.ndarray],
    labels: np.ndarray | Sequence[int] | None = None,
    num_images: int | None = None,
) -> None:
    """Writes images, and their classes if they have any, without holding all of them at once.

    Args:
        path: the file, written atomically; its folder is made if missing.
        images: uint8 (N, H, W, C), C being 3 for the usual evaluators, or 1 or 4; or an iterable of
            such arrays (B, H, W, C) of one size, N images in all.
        labels: integers (N,), or None.
        num_images: N, which an iterable needs.

    Raises:
        ValueError: if images or labels are not of that kind, or are not N.

    Example:

    ```python
    blocks = (to_uint8(sample(model, 100, seed=100 * i)) for i in range(500))
    write_batch_file("samples.npz", blocks, num_images=50_000)
    ```
    """
    blocks = images
    if isinstance(images, np.ndarray):
        _check_block(images, images.shape)
        if num_images not in (None, len(images)):
            raise _wrong_count(num_images, len(images))
        num_images = len(images)
        blocks = (images[start : start + _ROWS] for start in range(0, num_images, _ROWS))
    if not is_integer(num_images) or num_images < 1:
        raise ValueError(
            "A batch file holds at least one image, and needs to know how many before the first: "
            "give `images` as one uint8 array, or `num_images` with the iterable. "
            f"Received: num_images={num_images!r}"
        )
    if labels is not None:
        labels = _checked_labels(labels, num_images)

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            # Zip64 from the start, because the size is not known to the writer.
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                _write_images(member, blocks, int(num_images))
            if labels is not None:
                with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, labels)

    write_whole(path, write)


def open_batch_file(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray | None]:
    """Opens a batch file, whose images stay on disk where they are not compressed.

    The file is read through once, so that damage is found now and not in the middle of its use.

    Args:
        path: a file of `write_batch_file`, of `np.savez` or of another project.

    Returns:
        The images, uint8 (N, H, W, C): a read-only memory map, or an array in memory if the file is
        compressed; and the labels, int64 (N,), or None.

    Raises:
        ValueError: if the file is missing, cut off or damaged, has no `arr_0`, or its arrays are
            not of that kind.
    """
    arrays, found = read_npz(path, ("arr_0", "arr_1"), mapped=("arr_0",))
    received = f"Received: path={str(path)!r}"
    if "arr_0" not in arrays:
        raise ValueError(
            "A batch file must hold its images as `arr_0`; write it with write_batch_file, or with "
            f"np.savez(path, images). It holds {found}. {received}"
        )
    images, labels = arrays["arr_0"], arrays.get("arr_1")
    try:
        _check_block(images, images.shape)
        if labels is not None:
            labels = _checked_labels(labels, len(images))
    except ValueError as error:
        raise ValueError(f"The file is no batch of images. {error}, path={str(path)!r}") from error
    return images, labels


def read_npz(
    path: str | os.PathLike, names: Sequence[str], mapped: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads those arrays of an .npz file that are wanted and there, and checks their checksums.

    Args:
        path: the file.
        names: the arrays to read.
        mapped: those of them that become read-only memory maps, where they are not compressed.

    Returns:
        The arrays by name, and the names of all that the file holds.

    Raises:
        ValueError: if the file is missing, cut off or damaged, or needs pickle.
    """
    path = Path(path).expanduser()
    received = f"Received: path={str(path)!r}"
    if not path.is_file():
        raise ValueError(f"There is no such file; check the path. {received}")
    try:
        # What is not an archive, or is cut off, fails here.
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            found = list(file.files)
            arrays = {}
            for name in names:
                if name in found:
                    array = _map_array(path, archive, f"{name}.npy") if name in mapped else None
                    arrays[name] = np.asarray(file[name]) if array is None else array
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,  # encrypted, or compressed by a method that is not known
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            "The file is not an npz file that NumPy can read without pickle: it is cut off or "
            "damaged, or strings were saved as objects. Write it anew with np.savez, strings as "
            f"np.array(..., dtype=str). The error was: {error}. {received}"
        ) from error
    return arrays, found


def _map_array(path: Path, archive: zipfile.ZipFile, name: str) -> np.memmap | None:
    """Maps the array that a member of the archive holds as it is; None if it does not.

    The member is read to its end, for zipfile compares checksums there.
    """
    if name not in archive.namelist():
        return None
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            return None
        length = member.tell()
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        if dtype.hasobject or size == 0 or length + size > info.file_size:
            return None
        while member.read(1 << 18):
            pass
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    order = "F" if fortran_order else "C"
    return np.memmap(path, dtype, "r", offset=start + length, shape=shape, order=order)


def _write_images(member: object, blocks: Iterable[np.ndarray], num_images: int) -> None:
    """Writes the .npy of all blocks into an open member of an archive."""
    count = 0
    for block in _checked(blocks):
        if count == 0:
            header = {
                "descr": "|u1",
                "fortran_order": False,
                "shape": (num_images, *block.shape[1:]),
            }
            np.lib.format.write_array_header_1_0(member, header)
        count += len(block)
        if count > num_images:
            raise _wrong_count(num_images, f"{count} or more")
        member.write(np.ascontiguousarray(block))
    if count < num_images:
        raise _wrong_count(num_images, count)


def _checked(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the blocks, all of the first one's size, that hold images."""
    shape = None
    for block in blocks:
        block = np.asarray(block)
        shape = shape or block.shape
        if block.shape[:1] != (0,):
            _check_block(block, shape)
            yield block


def _check_block(images: np.ndarray, shape: tuple) -> None:
    fits = images.ndim == 4 and images.shape[1:] == shape[1:] and images.size > 0
    if images.dtype != np.uint8 or not fits or images.shape[-1] not in (1, 3, 4):
        sizes = "(N, H, W, C)" if len(shape) != 4 else f"(N, {', '.join(map(str, shape[1:]))})"
        raise ValueError(
            f"The images of a batch file must be uint8 {sizes}, C being 1, 3 or 4 and N at least "
            "1, all of one size; convert values in [-1, 1] with keras_cdiff.data.to_uint8, and "
            "move channels last. "
            f"Received: images of shape {images.shape}, dtype {images.dtype}"
        )


def _checked_labels(labels: np.ndarray | Sequence[int], num_images: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (num_images,):
        raise ValueError(
            f"The labels of a batch file must be {num_images} integers, one an image. "
            f"Received: labels of shape {labels.shape}, dtype {labels.dtype}"
        )
    return labels.astype(np.int64)


def _wrong_count(num_images: int, count: int | str) -> ValueError:
    return ValueError(
        "`num_images` must be the number of images that there are: correct one of the two. "
        f"Received: num_images={num_images}, with {count} images"
    )

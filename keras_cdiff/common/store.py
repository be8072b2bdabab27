"""A folder of files with an index in JSON: its format, checksums, damage, and who may write."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_cdiff.common.files import FolderLock, file_digest, write_whole


class FolderStore:
    """A folder of files and what is said of its faults.

    Args:
        folder: the folder.
        what: the subject of errors with its verb, such as "The latents are".
        remedy: what makes them anew once the folder is removed, such as " and encode anew"; or "".
        version: what an index must have as its "format"; None for any.
        name: what the content is called in errors; by default the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        what: str,
        remedy: str = "",
        version: int | None = None,
        name: str | None = None,
    ):
        self.folder = Path(folder)
        self._what, self._remedy, self._version = what, remedy, version
        self._received = repr(name) if name else f"folder={str(self.folder)!r}"

    def read(self, name: str = "index.json") -> dict:
        """Returns an index.

        Raises:
            ValueError: if it is not JSON, or of another format; see `reading`.
            OSError: if it cannot be read.
        """
        return self.parse((self.folder / name).read_text("utf-8"))

    def parse(self, text: str | bytes) -> dict:
        """Returns the index of a text; raises a ValueError as `read`."""
        index = json.loads(text)
        if self._version is not None and index["format"] != self._version:
            raise ValueError(f"its format is {index['format']!r}, not {self._version}")
        return index

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Within it, whatever a damaged file has its reader raise becomes `damaged`; what the
        system refuses, such as permission, stays an OSError.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            raise self.damaged(f"{type(error).__name__}: {error}") from error

    def damaged(self, fault: str) -> ValueError:
        """Returns the error that the folder is damaged."""
        return ValueError(
            f"{self._what} damaged, or of another version of keras_cdiff: remove the folder"
            f"{self._remedy}. Received: {self._received} ({fault})"
        )

    def check(self, name: str, sha256: str | None = None, size: int | None = None) -> None:
        """Raises a ValueError unless a file has this checksum and size, where they are given."""
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if size is not None and path.stat().st_size != size:
            raise ValueError(f"{name} is not what was written: it has {path.stat().st_size} bytes")
        if sha256 is not None and (found := file_digest(path)) != sha256:
            raise ValueError(f"{name} is not what was written: its sha256 is {found}, not {sha256}")

    def open_array(
        self, name: str, shape: tuple[int, ...], dtype: str, mode: str = "r"
    ) -> np.memmap:
        """Returns the array of a .npy file, mapped.

        Raises:
            ValueError: if it is of another shape or type, or cut off; see `reading`.
        """
        path = self.folder / name
        # For reading first: a file that was cut off would be filled up with zeros.
        array = np.lib.format.open_memmap(path, "r")
        if array.shape != shape or array.dtype != np.dtype(dtype):
            raise ValueError(f"{name} holds {array.dtype} {array.shape}, not {shape}")
        if path.stat().st_size != array.offset + array.nbytes:
            raise ValueError(f"{name} has {path.stat().st_size} bytes")
        return array if mode == "r" else np.lib.format.open_memmap(path, mode)

    @contextlib.contextmanager
    def writing(self, in_use: str) -> Iterator[None]:
        """Keeps other processes out while the block runs, and removes what a killed one left.

        Args:
            in_use: what the ValueError says to another process.
        """
        with FolderLock(self.folder, in_use):
            for leftover in self.folder.glob("writing-*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield


def write_json(path: Path, content: dict | list, indent: int | None = 1) -> None:
    """Writes plain data as JSON, atomically."""
    text = json.dumps(content, indent=indent, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8"))

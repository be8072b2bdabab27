"""What is written to disk: files and folders written atomically, logs, locks, and strict JSON."""

import contextlib
import hashlib
import json
import math
import os
import socket
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Has `write` write a file under a temporary name, so that `path` is never half written; it is
    on the disk when this returns.

    Args:
        path: the file to write; its folder is made if missing.
        write: takes the temporary path, which has the suffix of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"writing-{os.getpid()}-{path.name}")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the name, too; Windows cannot open a folder
        _flush(path.parent)


def write_whole_folder(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Has `write` make a folder beside `path` and renames it, so that `path` is never half written.

    Args:
        path: the folder, missing or empty; those above it are made, and removed again if `write`
            fails.
        write: takes the temporary path, at which there is nothing.
    """
    path = Path(path).resolve()
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="writing-", dir=path.parent) as scratch:
            write(Path(scratch) / path.name)
            if path.exists():
                path.rmdir()  # Windows renames nothing onto a folder
            os.replace(Path(scratch) / path.name, path)
    except BaseException:
        with contextlib.suppress(OSError):  # someone else may use them by now
            for folder in made:
                folder.rmdir()
        raise


class FolderLock:
    """Keeps a second process out of a folder, while used as a context manager.

    The lock is the operating system's (flock) on the file `lock` in the folder. It ends with the
    process, however that dies; the file stays and means nothing by itself. It holds the process and
    its host as text, for the message that another process gets.

    Where Python has no flock (Windows) nothing is locked; where the file system has none, a warning
    says so.

    Args:
        path: the folder; it is made if missing.
        in_use: what the error says to a second process, perhaps with "{holder}"; None has it wait.
        noun: what the folder is called in errors.
    """

    def __init__(self, path: str | os.PathLike, in_use: str | None, noun: str = "folder"):
        self.path, self.in_use, self.noun = Path(path), in_use, noun
        self.file = self.path / "lock"
        self._descriptor = None

    def __enter__(self) -> "FolderLock":
        """Takes the lock.

        Raises:
            ValueError: if another process holds it, or the folder cannot be written to.
        """
        if fcntl is None:
            return self
        received = f"Received: {self.noun}={str(self.path)!r}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(
                f"The {self.noun} must be a folder that can be written to ({error.strerror}): give "
                f"it the permission, or choose another one. {received}"
            ) from error
        try:
            self._lock(descriptor, received)
        except BaseException:
            os.close(descriptor)
            raise
        _held.add(descriptor)
        self._descriptor = descriptor
        return self

    def __exit__(self, *exception: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held:  # not so in a forked child
            _held.remove(descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _lock(self, descriptor: int, received: str) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if self.in_use else 0))
        except BlockingIOError as error:
            holder = os.read(descriptor, 500).decode(errors="replace").strip()
            in_use = self.in_use.format(holder=holder or "another process")
            raise ValueError(f"{in_use} {received}") from error
        except OSError as error:
            warnings.warn(
                f"The file system of the {self.noun} has no locks ({error.strerror}): see to it "
                f"yourself that no second process works there. {received}",
                stacklevel=3,
            )
        # The text is a courtesy: a full disk is for the checkpoints to tell.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


_held: set[int] = set()  # descriptors of the locks of this process


def _forget_locks() -> None:
    """Closes the locks in a forked child, which would hold them beyond its parent's death."""
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget_locks)


def append_record(path: str | os.PathLike, record: dict) -> None:
    """Appends a record to a file of JSON lines; it is on the disk when this returns.

    Args:
        path: the file; it and its folder are made if missing.
        record: plain data, as `strict_json` makes it.

    Raises:
        OSError: with the name of the file, if it cannot be written.
    """
    path = Path(path)
    line = json.dumps(record, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def strict_json(value: object) -> object:
    """Returns plain data for JSON, which has neither NaN nor infinity: null and "inf" stand for
    them, and lists for tuples.
    """
    if isinstance(value, dict):
        return {name: strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def file_digest(path: str | os.PathLike) -> str:
    """Returns the sha256 of a file, in 64 hex digits.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Makes what the system holds of a file or folder durable."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)

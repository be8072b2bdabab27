"""What is written to disk: files that are there whole or not at all, logs, and strict JSON."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike, message: str | None = None) -> Iterator[None]:
    """Keeps a second process out of a folder while the block runs, by a lock on the file `lock` in
    it; the system releases it if the process dies. Where Python has no flock nothing is locked.

    Args:
        folder: the folder; it is made if missing.
        message: what the ValueError says to a second process; None has it wait.

    Raises:
        ValueError: if another process is in the block, and there is a message.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if message is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(f"{message} Received: folder={str(folder)!r}") from None
        yield


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

"""Files that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Has `write` write a file under a temporary name, so that `path` is never half written.

    Args:
        path: the file to write; its folder is made if missing.
        write: takes the temporary path, which has the suffix of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"writing-{os.getpid()}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

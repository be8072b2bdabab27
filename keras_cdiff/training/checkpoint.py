"""Checkpoints on disk: arrays and plain data in one file that is whole and verified, or refused.

A checkpoint is an uncompressed zip archive of one .npy member an array and manifest.json, which
holds the format, the metadata, and name, dtype, shape and SHA-256 of every array. The archive's
comment is the SHA-256 of the manifest. Nothing in it is ever unpickled.
"""

import errno
import hashlib
import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import write_whole

_FORMAT = 1
_MANIFEST = "manifest.json"

# What an error says of access to a file rather than of the file.
_UNREADABLE = (errno.EACCES, errno.EIO, errno.EMFILE, errno.EPERM, errno.ESTALE)


class DamagedCheckpoint(ValueError):  # noqa: N818 (it is the file that is damaged)
    """A file that is no checkpoint, or not any more what was written."""


def write_checkpoint(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict
) -> None:
    """Writes a checkpoint that is on the disk when this returns, and otherwise not there.

    Args:
        path: the file to write; its folder is made if missing.
        arrays: arrays of booleans or numbers, ml_dtypes' included, by name.
        metadata: plain data for JSON.

    Raises:
        ValueError: if arrays or metadata cannot be stored.
        OSError: if the file cannot be written; what lay at `path` is still there.
    """
    path = Path(path)
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "A checkpoint's metadata must be plain data for JSON, without NaN or infinity. "
            f"Received: metadata={metadata!r} ({error})"
        ) from error
    arrays = {name: _checked(name, array) for name, array in arrays.items()}
    write_whole(path, lambda temporary: _write(temporary, arrays, metadata))


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict]:
    """Reads a checkpoint and verifies all of it.

    Returns:
        The arrays by name and the metadata, as they were written.

    Raises:
        DamagedCheckpoint: if the file is missing, damaged, or of another kind.
        OSError: if it cannot be read now, which says nothing of the file.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            return _read(archive, os.path.getsize(path))
    # Damage makes zipfile, NumPy and JSON raise exceptions of many classes.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNREADABLE:
            raise
        raise DamagedCheckpoint(
            "A checkpoint must be a whole file that write_checkpoint wrote: remove it, or restore "
            f"it from a copy. Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error


class CheckpointFolder:
    """The checkpoints of one run, step_00000500.zip and so on.

    Args:
        path: the folder; it is made by the first `save`, which also removes what a killed writer
            left. Only one process may write into it at a time.
        keep_last: how many of the latest checkpoints to keep, >= 1. Older ones that are there when
            the first is saved are left alone: they may have been kept on purpose.
        keep_every: checkpoints of steps divisible by it are kept as well; None for none.
    """

    def __init__(self, path: str | os.PathLike, keep_last: int = 3, keep_every: int | None = None):
        self.path = Path(path)
        self.keep_last = check_integer("keep_last", keep_last)
        self.keep_every = None if keep_every is None else check_integer("keep_every", keep_every)
        self._opened = False
        self._archive: list[int] = []

    def file(self, step: int) -> Path:
        """Returns where the checkpoint of a step lies."""
        return self.path / f"step_{step:08d}.zip"

    def steps(self) -> list[int]:
        """Returns the steps that there is a file of, ascending."""
        names = (re.fullmatch(r"step_(\d{8,})\.zip", p.name) for p in self.path.glob("step_*.zip"))
        return sorted(int(name[1]) for name in names if name)

    def save(self, step: int, arrays: dict[str, np.ndarray], metadata: dict) -> None:
        """Writes the checkpoint of a step, then removes those that need not be kept.

        Files of later steps are left alone; see `set_aside`.

        Raises:
            ValueError: if arrays or metadata cannot be stored.
            OSError: if the disk is full or read-only; earlier checkpoints are intact.
        """
        try:
            if not self._opened:
                self._open()
            write_checkpoint(self.file(step), arrays, {"step": int(step), "metadata": metadata})
        except OSError as error:
            raise OSError(
                error.errno,
                f"The checkpoint of step {step} could not be written ({error.strerror or error}); "
                "earlier ones are intact. Make room or give write access, then run the same "
                "command again",
                str(self.path),
            ) from error
        # Counted up to this step: damaged files of later steps must not displace this one.
        earlier = [other for other in self.steps() if other <= step]
        for other in earlier[: -self.keep_last]:
            kept = self.keep_every is not None and other % self.keep_every == 0
            if not kept and other not in self._archive:
                self.file(other).unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, np.ndarray], dict] | None:
        """Returns step, arrays and metadata of the newest checkpoint that verifies, or None.

        A damaged one is reported by a warning and passed over.

        Raises:
            DamagedCheckpoint: if there are some, and none verifies: a run that began anew without a
                word would overwrite what can perhaps be saved.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                arrays, stored = read_checkpoint(self.file(step))
                if stored.get("step") != step:
                    raise DamagedCheckpoint(
                        "A checkpoint's name must be that of its step. "
                        f"Received: path={str(self.file(step))!r}, of step {stored.get('step')!r}"
                    )
            except DamagedCheckpoint as error:
                warnings.warn(f"Passed over a damaged checkpoint. {error}", stacklevel=2)
            else:
                return step, arrays, stored["metadata"]
        if steps:
            raise DamagedCheckpoint(
                "No checkpoint of the run verifies: restore one from a copy, or remove them to "
                f"begin anew. Received: path={str(self.path)!r}, with steps {steps}"
            )
        return None

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob("writing-*-step_*.zip"):
            leftover.unlink(missing_ok=True)
        self._archive = self.steps()[: -self.keep_last]
        self._opened = True

    def set_aside(self, step: int) -> None:
        """Renames the checkpoints beyond a step, which `latest` passed over or nobody wants, to
        damaged-step_00000500.zip and so on.
        """
        for later in self.steps():
            if later > step:
                file = self.file(later)
                os.replace(file, file.with_name(f"damaged-{file.name}"))


class _Hashed(io.RawIOBase):
    """A stream to write to that keeps the SHA-256 of what goes through."""

    def __init__(self, stream: io.IOBase):
        self.stream, self.digest = stream, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.stream.write(data)


def _write(path: Path, arrays: dict[str, np.ndarray], metadata: dict) -> None:
    entries = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            stored = array
            if array.dtype.kind not in "biufc":  # .npy knows no dtype of ml_dtypes
                stored = array.view(f"uint{8 * array.itemsize}")
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as stream:
                hashed = _Hashed(stream)
                np.lib.format.write_array(hashed, stored, allow_pickle=False)
            entries.append(
                {
                    "name": name,
                    "dtype": array.dtype.name,
                    "shape": list(array.shape),
                    "sha256": hashed.digest.hexdigest(),
                }
            )
        manifest = {"format": _FORMAT, "metadata": metadata, "arrays": entries}
        text = json.dumps(manifest, allow_nan=False).encode()
        archive.writestr(zipfile.ZipInfo(_MANIFEST), text)
        archive.comment = hashlib.sha256(text).hexdigest().encode()


def _read(archive: zipfile.ZipFile, size: int) -> tuple[dict[str, np.ndarray], dict]:
    members = {member.filename: member for member in archive.infolist()}
    for member in archive.infolist():
        # A size that is damaged must not be allocated.
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
            raise ValueError(f"{member.filename!r} is not stored as it should be")
    text = archive.read(members[_MANIFEST])
    if hashlib.sha256(text).hexdigest().encode() != archive.comment:
        raise ValueError("the manifest's checksum is wrong")
    manifest = json.loads(text)
    if manifest["format"] != _FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}, and {_FORMAT} can be read")
    names = [f"{entry['name']}.npy" for entry in manifest["arrays"]]
    if sorted([_MANIFEST, *names]) != sorted(m.filename for m in archive.infolist()):
        raise ValueError("its members are not those of the manifest")
    arrays = {}
    for entry in manifest["arrays"]:
        data = archive.read(members[f"{entry['name']}.npy"])
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ValueError(f"the checksum of {entry['name']!r} is wrong")
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        if array.dtype.name != entry["dtype"]:
            array = array.view(getattr(ml_dtypes, entry["dtype"]))
        if list(array.shape) != entry["shape"]:
            raise ValueError(f"{entry['name']!r} is of another shape")
        arrays[entry["name"]] = array
    return arrays, manifest["metadata"]


def _checked(name: str, array: np.ndarray) -> np.ndarray:
    """The array in native byte order and C order, where it can be stored."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise ValueError(f"An array's name must be a plain string. Received: name={name!r}")
    array = np.asarray(array)
    number = array.dtype.kind in "biufc" or hasattr(ml_dtypes, array.dtype.name)
    if not number or array.dtype.name.endswith("int4"):
        raise ValueError(
            "A checkpoint holds arrays of booleans or numbers. "
            f"Received: {name!r} of dtype {array.dtype}"
        )
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)

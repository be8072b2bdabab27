"""Files of weights: state dicts in .npz, .safetensors and PyTorch's own format.

PyTorch's files are pickles. They are read here without PyTorch, by an unpickler that knows tensors
and nothing else, so that no code in a file can run.
"""

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from keras_cdiff.weights.torch_pickle import read_legacy_torch, read_zipped_torch

_SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of weights by their names.

    The format is found by looking at the file: an .npz of arrays; .safetensors; or what
    `torch.save(state_dict, path)` writes, as a zip or, before PyTorch 1.6, without one.

    Args:
        path: the file.

    Returns:
        Names to arrays, in the file's order.

    Raises:
        ValueError: if there is no such file, it is damaged, or holds something else than arrays.
    """
    path = Path(path)
    received = f"Received: weights={str(path)!r}"
    if not path.is_file():
        raise ValueError(f"There is no such file of weights. {received}")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            file.seek(0)
            if start.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    if any(name.endswith("data.pkl") for name in archive.namelist()):
                        return read_zipped_torch(archive)
                file.seek(0)
                return _read_npz(file)
            if start[8:9] == b"{":
                return _read_safetensors(file.read())
            return read_legacy_torch(file)
    except Exception as error:  # a damaged file makes its reader raise almost anything
        raise ValueError(
            "A file of weights must be a state dict of PyTorch's (.pth), an .npz or a .safetensors "
            f"of its arrays; fetch it again if it should be. {received} "
            f"({type(error).__name__}: {error})"
        ) from error


def weights_version(weights: Mapping[str, np.ndarray]) -> str:
    """Returns 16 hex digits that tell weights from others: a sha256 over names, shapes and values.

    It is the same in whatever order, file format or byte order the weights come.

    Args:
        weights: names to arrays; values count as float32.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = np.asarray(weights[name])
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()[:16]


def _read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    foreign = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if foreign:
        raise ValueError(f"{foreign[0]} is no array")
    return arrays


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if not 8 + size <= begin <= end <= len(data):
            raise ValueError(f"{name} lies outside the file")
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{name} is of type {entry['dtype']}; convert it to float32")
        arrays[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
    return arrays

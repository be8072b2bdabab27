"""Files of weights: state dicts in .npz, .safetensors and PyTorch's own format.

PyTorch's files are pickles, and a pickle is a program that may import and call what it likes. They
are read here without PyTorch, by an unpickler that admits only an ordered dict and what rebuilds a
tensor, so that no code in a file can run.
"""

import collections
import hashlib
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

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
                        return _read_zipped_torch(archive)
                file.seek(0)
                return _read_npz(file)
            if start[8:9] == b"{":
                return _read_safetensors(file.read())
            return _read_legacy_torch(file)
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


_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file that is no zip
_PROTOCOL = 1001


class _Numbers(NamedTuple):
    """A type of numbers. What the pickle is given must not be changed by it, as a dtype can be."""

    dtype: str


class _Storage(NamedTuple):
    """A named run of numbers, which tensors are views of."""

    key: str
    dtype: str


class _Tensor(NamedTuple):
    """A tensor of the pickle: a view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, data: np.ndarray) -> np.ndarray:
        """Returns the array, copied out of the storage's numbers."""
        if len(self.shape) != len(self.strides) or min((0, *self.shape, *self.strides)) < 0:
            raise ValueError(f"a tensor has shape {self.shape} and strides {self.strides}")
        size = math.prod(self.shape)
        last = self.offset + sum(
            (n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)
        )
        if size > data.size or self.offset < 0 or (size and last >= data.size):
            raise ValueError("a tensor lies outside its storage")
        if not size:
            return np.zeros(self.shape, data.dtype)
        strides = [stride * data.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors, and refuses whatever else a pickle imports."""

    def __init__(self, file: BinaryIO, byte_order: str):
        super().__init__(file)
        self.byte_order = byte_order

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time: a pickle may set attributes of what it is given.
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _Numbers(self.byte_order + _STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, numbers, key, _, _, *view = pid
        if kind != "storage" or not isinstance(numbers, _Numbers) or any(view):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, which is no whole storage")
        return _Storage(str(key), numbers.dtype)


def _read_zipped_torch(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Returns the state dict of a file of PyTorch 1.6 or later.

    Raises:
        ValueError, pickle.UnpicklingError and others: if it holds something else, or is damaged.
    """
    (pickled,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
    folder = pickled.removesuffix("data.pkl")
    names = set(archive.namelist())
    big = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"
    with archive.open(pickled) as file:
        state_dict = _Unpickler(file, ">" if big else "<").load()
    return _arrays(
        state_dict,
        lambda storage: np.frombuffer(archive.read(f"{folder}data/{storage.key}"), storage.dtype),
    )


def _read_legacy_torch(file: BinaryIO) -> dict[str, np.ndarray]:
    """Returns the state dict of a file that PyTorch wrote before 1.6.

    Raises:
        ValueError, pickle.UnpicklingError and others: if it holds something else, or is damaged.
    """
    if (_load(file), _load(file)) != (_MAGIC, _PROTOCOL):
        raise ValueError("the file does not begin as one of PyTorch's does")
    byte_order = "<" if _load(file)["little_endian"] else ">"
    state_dict = _load(file, byte_order)
    storages = {t.storage for t in _tensors(state_dict).values()}
    dtypes = {storage.key: np.dtype(storage.dtype) for storage in storages}
    data = {}
    for key in _load(file):
        (count,) = struct.unpack(f"{byte_order}q", file.read(8))
        content = file.read(count * dtypes[key].itemsize)
        if len(content) != count * dtypes[key].itemsize:
            raise ValueError("the file is cut short")
        data[key] = np.frombuffer(content, dtypes[key])
    return _arrays(state_dict, lambda storage: data[storage.key])


def _load(file: BinaryIO, byte_order: str = "<") -> object:
    return _Unpickler(file, byte_order).load()


def _tensors(state_dict: object) -> Mapping[str, _Tensor]:
    if not isinstance(state_dict, dict):
        raise ValueError(f"it holds a {type(state_dict).__name__}, no state dict")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise ValueError(
                f"its entry {name!r} is no tensor; save the network's state_dict() alone"
            )
    return state_dict


def _arrays(state_dict: object, read: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a state dict, whose storages `read` reads."""
    return {
        name: tensor.view(read(tensor.storage)) for name, tensor in _tensors(state_dict).items()
    }

"""State dicts that PyTorch saved, read without PyTorch and without running anything in them.

A pickle is a program for a small machine, which may import and call what it likes. The unpickler
here admits only an ordered dict and what rebuilds a tensor; anything else is an error.
"""

import collections
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np

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
    """Unpickles tensors, and refuses whatever else a pickle may ask for."""

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


def read_zipped_torch(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
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


def read_legacy_torch(file: BinaryIO) -> dict[str, np.ndarray]:
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

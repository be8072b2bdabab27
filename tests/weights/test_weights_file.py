"""Files of weights in every format, damaged ones, and ones that would run code."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from keras_cdiff.weights.weights_file import read_state_dict, weights_version

pytestmark = pytest.mark.backend_free

TORCH_FORMATS = {"zip": True, "legacy": False}


@pytest.fixture(scope="module")
def state_dict():
    rng = np.random.default_rng(0)
    arrays = {
        "conv.weight": rng.normal(size=(4, 3, 2, 1)).astype("float32"),
        "conv.bias": rng.normal(size=4),
        "half": rng.normal(size=(2, 3)).astype("float16"),
        "count": np.array(12345678901, "int64"),
        "none": np.zeros((0, 3), "float32"),
    }
    kinds = ("int32", "int16", "int8", "uint8", "bool")
    return arrays | {kind: rng.integers(0, 2, 5).astype(kind) for kind in kinds}


@pytest.fixture
def save(tmp_path):
    """A function: an object, a format -> the path of a file of it."""

    def write(weights, kind):
        path = tmp_path / f"weights-{kind}"
        if kind == "npz":
            np.savez(path, **weights)
            return path.with_name("weights-npz.npz")
        if kind == "safetensors":
            path.write_bytes(safetensors(weights))
        else:
            torch.save(weights, path, _use_new_zipfile_serialization=TORCH_FORMATS[kind])
        return path

    return write


def safetensors(weights):
    names = {"f": "F", "i": "I", "u": "U", "b": "BOOL"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in weights.items():
        kind = names[array.dtype.kind]
        header[name] = {
            "dtype": kind if kind == "BOOL" else f"{kind}{8 * array.itemsize}",
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def as_tensors(weights):
    return {name: torch.tensor(array) for name, array in weights.items()}


@pytest.mark.parametrize("kind", ["npz", "safetensors", "zip", "legacy"])
def test_every_format_gives_the_same_arrays(save, state_dict, kind):
    weights = as_tensors(state_dict) if kind in TORCH_FORMATS else state_dict
    read = read_state_dict(save(weights, kind))
    assert list(read) == list(state_dict)
    for name, array in state_dict.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        assert read[name].shape == array.shape
    assert weights_version(read) == weights_version(state_dict)


@pytest.mark.parametrize("kind", TORCH_FORMATS)
def test_views_of_shared_storages(save, kind):
    base = torch.arange(24.0)
    weights = {
        "transposed": base.reshape(4, 6).T,
        "strided": base[1::3],
        "part": base[5:7],
        "parameter": torch.nn.Parameter(base.reshape(2, 3, 4)),
        "scalar": base[23],
    }
    read = read_state_dict(save(weights, kind))
    for name, tensor in weights.items():
        np.testing.assert_array_equal(read[name], tensor.detach().numpy())
        assert read[name].flags.c_contiguous


@pytest.mark.parametrize("kind", TORCH_FORMATS)
def test_a_module_s_own_state_dict(save, kind):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    read = read_state_dict(save(module.state_dict(), kind))
    assert list(read) == list(module.state_dict())
    np.testing.assert_array_equal(read["1.running_var"], np.ones(4, "float32"))


def test_the_version_is_of_names_shapes_and_values(state_dict):
    version = weights_version(state_dict)
    assert len(version) == 16
    assert int(version, 16) >= 0
    assert weights_version(dict(reversed(state_dict.items()))) == version
    weight = state_dict["conv.weight"]
    assert weights_version({**state_dict, "conv.weight": weight.astype(">f4")}) == version
    assert weights_version({**state_dict, "conv.weight": np.asfortranarray(weight)}) == version
    others = [
        {**state_dict, "conv.weight": weight.reshape(4, 3, 1, 2)},
        {**state_dict, "conv.weight": np.nextafter(weight, np.float32(1))},
        {name.replace("conv", "dense"): array for name, array in state_dict.items()},
    ]
    versions = {weights_version(other) for other in others}
    assert len(versions) == 3
    assert version not in versions


class Attack:
    """What makes a file, when it is unpickled, call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("kind", TORCH_FORMATS)
def test_no_code_in_a_file_runs(save, tmp_path, kind):
    mark = tmp_path / "attacked"
    for attack in (Attack(os.mkdir, str(mark)), Attack(eval, f"open({str(mark)!r}, 'w')")):
        path = save({"weight": torch.zeros(2), "bias": attack}, kind)
        with pytest.raises(ValueError, match=r"asks for .*, which is not admitted\)$"):
            read_state_dict(path)
    path = tmp_path / "pickle"
    path.write_bytes(pickle.dumps(Attack(os.mkdir, str(mark))))
    with pytest.raises(ValueError, match="which is not admitted"):
        read_state_dict(path)
    assert not mark.exists()


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, weight=np.array([Attack(os.mkdir, str(tmp_path / "attacked"))]))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "zip", "legacy"])
def test_a_file_that_is_cut_short_is_refused(save, state_dict, kind):
    path = save(as_tensors(state_dict) if kind in TORCH_FORMATS else state_dict, kind)
    content = path.read_bytes()
    for kept in (0, 1, 4, 9, 30, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=f"fetch it again.*Received: weights='{path}'"):
            read_state_dict(path)


def test_a_damaged_byte_is_found(save, state_dict):
    path = save(as_tensors(state_dict), "zip")
    content = path.read_bytes()
    data = state_dict["conv.weight"].tobytes()
    path.write_bytes(content.replace(data, data[:-1] + b"?"))
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read_state_dict(path)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.arange(6.0)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:-4] if name.endswith("data/0") else content)
    with pytest.raises(ValueError, match="a tensor lies outside its storage"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", TORCH_FORMATS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "it holds a list, no state dict"),
        ({"epoch": 3, "model": {}}, "its entry 'epoch' is no tensor"),
        ({3: torch.zeros(1)}, "its entry 3 is no tensor"),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear"),
    ],
)
def test_what_is_no_state_dict_is_refused(save, kind, content, message):
    with pytest.raises(ValueError, match=message):
        read_state_dict(save(content, kind))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no such file of weights"):
        read_state_dict(tmp_path)
    with pytest.raises(ValueError, match="There is no such file of weights"):
        read_state_dict(tmp_path / "missing.pth")
    text = tmp_path / "page.html"
    text.write_text("<!doctype html><p>Not found")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", "{}")
    (tmp_path / "model.keras").write_bytes(archive.getvalue())
    for path in (text, tmp_path / "model.keras"):
        with pytest.raises(
            ValueError, match=r"must be a state dict of PyTorch's \(.pth\), an .npz"
        ):
            read_state_dict(path)

"""Shared fixtures: the golden files computed with the official codes."""

import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest


class Golden(dict):
    """The arrays of one golden file by name, and its `config`."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            super().__init__({name: file[name] for name in file.files})
        self.config = json.loads(str(self.pop("config")))

    def folder(self, prefix):
        """The arrays below `prefix`/, by the rest of their names."""
        prefix = prefix.rstrip("/") + "/"
        return {k.removeprefix(prefix): v for k, v in self.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden():
    """A function: the name of a golden file -> its arrays."""
    folder = Path(__file__).parent / "golden"
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = Golden(folder / f"{name}.npz")
        return loaded[name]

    return load


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts with the float32 policy and a fixed global seed."""
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)

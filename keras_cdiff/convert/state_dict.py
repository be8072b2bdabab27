"""State dicts of PyTorch: where their entries go in a Keras network."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np


class Entry(NamedTuple):
    """Where an entry of a state dict goes: variable, official shape, change of layout."""

    variable: keras.Variable
    shape: tuple[int, ...]
    layout: Callable[[np.ndarray], np.ndarray] = np.asarray


def plain(variable: keras.Variable) -> Entry:
    """Returns the entry of a variable whose layout is the official one."""
    return Entry(variable, tuple(variable.shape))


def dense(name: str, layer: keras.layers.Dense) -> dict[str, Entry]:
    """Returns the entries of a linear layer, whose official weight is (out, in)."""
    entries = {f"{name}.weight": Entry(layer.kernel, tuple(layer.kernel.shape)[::-1], np.transpose)}
    if layer.use_bias:
        entries[f"{name}.bias"] = plain(layer.bias)
    return entries


def check_constructor(
    network: str, defaults: Mapping[str, object], constructor: Mapping[str, object]
) -> dict[str, object]:
    """Returns the official constructor's arguments, with its defaults where none is given.

    Raises:
        ValueError: if one is unknown.
    """
    unknown = sorted(set(constructor) - set(defaults))
    if unknown:
        raise ValueError(
            f"The official {network} is configured by {', '.join(defaults)}. Received: {unknown}"
        )
    return {**defaults, **constructor}


def check_entries(
    state_dict: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises a ValueError unless the state dict has exactly the entries and shapes of `shapes`."""
    problems = [f"{name} is missing" for name in shapes if name not in state_dict]
    problems += [f"{name} is not expected" for name in state_dict if name not in shapes]
    problems += [
        f"{name} has the shape {state_dict[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in state_dict and state_dict[name].shape != shape
    ]
    if problems:
        raise ValueError(
            "The state dict must be that of the network that the constructor's arguments describe. "
            f"Received: {'; '.join(problems)}"
        )

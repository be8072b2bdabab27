"""Presets: named configurations as plain data, each with its source.

A preset holds the parts of the model as their configurations, the training settings, the
curriculum's defaults and the sampler that shows its results. `DiffusionModel.from_preset` and
`keras_cdiff.training` turn them into objects.
"""

import copy

from keras_cdiff.presets.dit import DIT_PRESETS, DIT_SIZES
from keras_cdiff.presets.edm import EDM_PRESETS

__all__ = ["DIT_SIZES", "PRESETS", "preset"]

PRESETS = {**DIT_PRESETS, **EDM_PRESETS}


def preset(name: str) -> dict:
    """Returns a copy of the configuration called `name`.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    if name not in PRESETS:
        raise ValueError(f"A preset must be one of {', '.join(PRESETS)}. Received: name={name!r}")
    return copy.deepcopy(PRESETS[name])

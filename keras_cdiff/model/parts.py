"""The parts of a model from configurations: those of a preset, those of a run, those saved."""

import inspect
from collections.abc import Mapping

import keras

from keras_cdiff import backbones, presets


def parts_of_preset(name: str, overrides: Mapping) -> dict:
    """Returns the "model" of a preset with some values replaced.

    Args:
        name: a name in `keras_cdiff.presets.PRESETS`.
        overrides: schedule, parameterization, objective, ema, augmentation or seed; anything else
            is an argument of the backbone.
    """
    parts = {"augmentation": None, **presets.preset(name)["model"]}
    backbone = parts["backbone"]
    arguments = inspect.signature(getattr(backbones, backbone["class_name"])).parameters
    names = [part for part in parts if part != "backbone"]
    for key, value in overrides.items():
        if key in (*names, "seed"):
            parts[key] = value
        elif key in arguments:
            backbone[key] = value
        else:
            raise ValueError(
                f"An override of preset {name!r} must be one of {', '.join(names)}, seed, or "
                f"an argument of {backbone['class_name']}: {', '.join(arguments)}. "
                f"Received: {key}={value!r}"
            )
    return parts


def build(parts: Mapping) -> dict:
    """Returns the arguments of `DiffusionModel` that the "model" of a preset stands for; its
    network has random weights.

    Args:
        parts: "backbone", the name of a backbone's class and its arguments; schedule,
            parameterization, objective, ema, augmentation and seed, objects or their
            configurations.
    """
    arguments = dict(parts["backbone"])
    name = arguments.pop("class_name")
    if name not in backbones.__all__:
        raise ValueError(
            f"A backbone must be one of {', '.join(backbones.__all__)}. "
            f"Received: class_name={name!r}"
        )
    backbone = getattr(backbones, name)(**arguments)
    return {
        **{key: deserialize(value) for key, value in parts.items() if key != "backbone"},
        "backbone": backbone,
    }


def deserialize(value: object) -> object:
    """Returns the object of a configuration, or the objects of several; others as they are."""
    if isinstance(value, list):
        return [deserialize(item) for item in value]
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value

"""How a model is put together from configurations of its parts: those of a preset, those saved."""

import inspect
from collections.abc import Mapping

import keras

from keras_cdiff import backbones, presets


class Composition:
    """Mixin of a model that is made of parts and serialised part by part."""

    @classmethod
    def from_preset(cls, name: str, **overrides: object) -> "Composition":
        """Builds the model of a preset, with random weights.

        Args:
            name: a name in `keras_cdiff.presets.PRESETS`.
            **overrides: schedule, parameterization, objective, ema, augmentation or seed; anything
                else is an argument of the backbone, such as image_size, num_classes or dtype.
        """
        parts = {"augmentation": None, **presets.preset(name)["model"]}
        backbone = parts.pop("backbone")
        arguments = inspect.signature(getattr(backbones, backbone["class_name"])).parameters
        for key, value in overrides.items():
            if key in (*parts, "seed"):
                parts[key] = value
            elif key in arguments:
                backbone[key] = value
            else:
                raise ValueError(
                    f"An override of preset {name!r} must be one of {', '.join(parts)}, seed, or "
                    f"an argument of {backbone['class_name']}: {', '.join(arguments)}. "
                    f"Received: {key}={value!r}"
                )
        return cls.from_parts({**parts, "backbone": backbone})

    @classmethod
    def from_parts(cls, parts: Mapping, seed: int | None = None) -> "Composition":
        """Builds the model of a preset's "model", with random weights.

        Args:
            parts: "backbone", the name of a backbone's class and its arguments; schedule,
                parameterization, objective, ema and augmentation, objects or their configurations.
            seed: of weights and noise; None for that among the parts, or the default.
        """
        parts = {**parts, **({} if seed is None else {"seed": seed})}
        backbone = dict(parts.pop("backbone"))
        name = backbone.pop("class_name")
        if name not in backbones.__all__:
            raise ValueError(
                f"A backbone must be one of {', '.join(backbones.__all__)}. "
                f"Received: class_name={name!r}"
            )
        network = getattr(backbones, name)
        return cls(network(**backbone), **{k: _deserialize(v) for k, v in parts.items()})

    def get_config(self) -> dict:
        parts = {
            "backbone": self.backbone,
            "schedule": self.schedule,
            "parameterization": self.parameterization,
            "objective": self.objective,
            "ema": list(self.ema) if isinstance(self.ema, tuple) else self.ema,
            "augmentation": self.augmentation,
        }
        config = {k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        return {**config, "seed": self.seed, "name": self.name}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Composition":
        with keras.saving.custom_object_scope(custom_objects or {}):
            return cls(**{k: _deserialize(v) for k, v in config.items()})


def _deserialize(value: object) -> object:
    if isinstance(value, list):
        return [_deserialize(item) for item in value]
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value

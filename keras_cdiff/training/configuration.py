"""The configuration of a training run: a preset with settings, as plain data that JSON can hold."""

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import keras

from keras_cdiff.augmentation import Augmentation
from keras_cdiff.common.checks import check_choice, check_integer
from keras_cdiff.curriculum import Clusters
from keras_cdiff.presets import part
from keras_cdiff.presets import preset as get_preset
from keras_cdiff.training import settings
from keras_cdiff.training.building import make_clusters, make_pacing
from keras_cdiff.training.settings import GROUPS, Curriculum, Evaluation, Model, Validation
from keras_cdiff.version import __version__

Group = TypeVar("Group")
Function = TypeVar("Function", bound=Callable)

# Of the loss, with the values of their papers.
WEIGHTINGS = {
    "constant": part("Constant"),
    "min_snr": part("MinSNR", gamma=5.0),
    "p2": part("P2", gamma=1.0, k=1.0),
}
CLUSTERS = ("uniform", "snr", "quantile")


def with_settings(*groups: type) -> Callable[[Function], Function]:
    """Returns a decorator that writes settings into a function's signature and docstring, which
    takes them as **keyword arguments and says "{settings}".
    """

    def document(function: Function) -> Function:
        signature = inspect.signature(function)
        others = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = [field for group in groups for field in dataclasses.fields(group)]
        added = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
            for f in fields
        ]
        lines = [f"    {f.name}: {settings.describe(f)[0].help}" for f in fields]
        function.__doc__ = function.__doc__.replace("{settings}", "\n        ".join(["", *lines]))

        @functools.wraps(function)
        def checked(*args: object, **kwargs: object) -> object:
            signature_with_settings.bind_partial(*args, **kwargs)  # an unknown name is a TypeError
            return function(*args, **kwargs)

        signature_with_settings = signature.replace(parameters=[*others, *added])
        checked.__signature__ = signature_with_settings
        return checked

    return document


@with_settings(*GROUPS)
def resolve(preset: str | Mapping, **changes: object) -> dict:
    """Returns the whole configuration of a run: the preset, with what is not None in its place.

    No data is opened. Where other data than the preset's is set without a number of classes, a
    class-conditional preset leaves the number to the data: it is None. A text encoder leaves the
    width of contexts to itself in the same way.

    Args:
        preset: a name in `keras_cdiff.presets.PRESETS`; or a preset of one's own, such as
            `keras_cdiff.presets.preset` returns and you have changed, with its "name".
        **changes: settings by name, as `keras_cdiff.training.settings` has them:{settings}

    Raises:
        ValueError: for an unknown name or a number out of range.
    """
    name, config = _open_preset(preset)
    if isinstance(changes.get("jit_compile"), bool):
        changes["jit_compile"] = str(changes["jit_compile"]).lower()
    chosen = {group: choose(group, changes, config.get(group.section)) for group in GROUPS}
    for group, values in chosen.items():
        if group.section:
            config[group.section] = {**config.get(group.section, {}), **_section(values)}
    training = config["training"]
    training["jit_compile"] = {"true": True, "false": False}.get(training["jit_compile"], "auto")
    if training["sample_every"] is None:
        training["sample_every"] = training["steps"]

    _set_model(config, name, chosen[Model])
    _set_data(config, name, chosen[settings.Data])
    backbone = config["model"]["backbone"]
    # What the network divides the image by: into patches, or by halving it block by block.
    divisor = backbone.get("patch_size") or 2 ** (len(backbone["channel_multipliers"]) - 1)
    check_integer("image_size", backbone["image_size"], 1)
    if backbone["image_size"] % divisor:
        raise ValueError(
            f"`image_size` must be a multiple of {divisor} for the network of {name}. "
            f"Received: image_size={backbone['image_size']}"
        )
    config["curriculum"], edges = _resolve_curriculum(config, chosen[Curriculum])
    if chosen[Evaluation].evaluate_every is None:
        config["evaluation"] = None
    validation = chosen[Validation]
    if (validation.validate_every is None) != (validation.validation_data is None):
        raise ValueError(
            "Validation needs both a number of steps and images: give both, or neither. "
            f"Received: validate_every={validation.validate_every}, "
            f"validation_data={validation.validation_data!r}"
        )
    if validation.validate_every is None:
        config["validation"] = None
    else:  # with the same clusters, whether a curriculum trains them or none
        config["validation"]["edges"] = edges
    config["autoencoder"] = None  # what the data says of it, if it is latents
    for words in ("description", "source"):
        config.pop(words, None)
    return {
        "preset": name,
        "seed": chosen[Model].seed,
        "backend": keras.backend.backend(),
        "keras_cdiff": __version__,
        **config,
    }


def choose(group: type[Group], changes: Mapping, defaults: Mapping | None = None) -> Group:
    """Returns a group of settings: what is not None of the changes, else the defaults.

    Args:
        group: a dataclass of `keras_cdiff.training.settings`.
        changes: values by the names of settings; others are left alone.
        defaults: values by their keys, as a preset or config.json has them; None for those of the
            group.

    Raises:
        ValueError: if a value is none of the setting's choices, or out of its range.
    """
    values = {}
    for field in dataclasses.fields(group):
        value = changes.get(field.name)
        if value is None:
            value = (defaults or {}).get(settings.key_of(field), field.default)
        values[field.name] = None if value is None else _checked(field, value)
    return group(**values)


def _checked(field: dataclasses.Field, value: object) -> object:
    rule, kind = settings.describe(field)
    if rule.choices:
        check_choice(field.name, value, rule.choices)
    elif kind is int:
        return check_integer(field.name, value, rule.least, rule.most)
    elif kind is float:
        least, most = rule.least, rule.most
        if rule.positive and not 0.0 < value < math.inf:
            raise ValueError(
                f"`{field.name}` must be positive and finite. Received: {field.name}={value!r}"
            )
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            bounds = f"at least {least}" if most is None else f"in [{least}, {most}]"
            raise ValueError(f"`{field.name}` must be {bounds}. Received: {field.name}={value!r}")
    return value


def _section(group: object) -> dict:
    """A group of settings as config.json holds it."""
    return {
        settings.key_of(field): getattr(group, field.name) for field in dataclasses.fields(group)
    }


def of_run(group: type[Group], config: dict) -> Group:
    """Returns a group of settings from the section of a run's configuration."""
    section = config[group.section]
    return group(**{f.name: section[settings.key_of(f)] for f in dataclasses.fields(group)})


def read(config: dict) -> dict:
    """Returns a run's configuration as this version knows it: what a setting was before there was
    the setting is its default.

    Raises:
        ValueError: if it has settings that this version does not know.
    """
    config, unknown = dict(config), []
    for group in GROUPS:
        section = group.section and config.get(group.section)
        if section:
            known = {settings.key_of(f): f.default for f in dataclasses.fields(group)}
            unknown += [f"{group.section}.{key}" for key in section if key not in {*known, "edges"}]
            config[group.section] = {**known, **section}
    if unknown:
        raise ValueError(
            f"The run was written by keras_cdiff {config.get('keras_cdiff')}, which has settings "
            f"that version {__version__} does not know: install that version, or train anew in "
            f"another --workdir. Received: {', '.join(sorted(unknown))}"
        )
    return config


def changeable() -> set[str]:
    """Returns what may change in config.json when a run goes on: how long it trains, what is
    watched and kept, where it runs and where its encoders lie.
    """
    names = {"autoencoder.name", "backend", "keras_cdiff", "text_encoder.name"}
    for group in GROUPS:
        fields = [f for f in dataclasses.fields(group) if settings.describe(f)[0].may_change]
        if len(fields) == len(dataclasses.fields(group)):
            names.add(group.section)
        else:
            names |= {f"{group.section}.{settings.key_of(field)}" for field in fields}
    return names


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Returns a line for each setting that differs between two configurations of one run and must
    not.
    """
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if f"{prefix}{key}" in changeable():
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key} was {a!r} and is now {b!r}")
    return lines


def _open_preset(preset: str | Mapping) -> tuple[str, dict]:
    """Returns a preset's name and a copy of its configuration."""
    if isinstance(preset, str):
        return preset, get_preset(preset)
    needed = ("name", "model", "data", "training", "curriculum", "sampling")
    missing = [key for key in needed if key not in preset]
    if missing:
        raise ValueError(
            "A preset of one's own must have all that `keras_cdiff.presets.preset` returns, and a "
            f'"name", by which its runs are called. Received: preset without {", ".join(missing)}'
        )
    config = copy.deepcopy(dict(preset))
    return config.pop("name"), config


def _set_data(config: dict, preset: str, chosen: settings.Data) -> None:
    """Sets the data, and what it decides in the network."""
    backbone = config["model"]["backbone"]
    if chosen.data not in (None, config["data"]):
        config["data"] = chosen.data
        if backbone["num_classes"]:
            backbone["num_classes"] = None
    backbone.update(_not_none(num_classes=chosen.num_classes, image_size=chosen.image_size))
    name = chosen.text_encoder or config.get("text_encoder")
    config["text_encoder"] = None if name is None else {"name": name}
    if chosen.text_encoder is not None:
        _check_dit("text_encoder", name, preset, backbone)
        backbone["context_width"] = None
        backbone["num_classes"] = chosen.num_classes or 0


def _set_model(config: dict, preset: str, chosen: Model) -> None:
    """Sets the precision, the loss and the augmentation, with the network conditioned on it."""
    model, backbone = config["model"], config["model"]["backbone"]
    backbone["dtype"] = chosen.dtype_policy
    if chosen.rematerialize:
        _check_dit("rematerialize", True, preset, backbone)
        backbone["rematerialize"] = True
    if chosen.weighting is not None:
        model["objective"]["config"]["weighting"] = copy.deepcopy(WEIGHTINGS[chosen.weighting])
    if chosen.augment is None:
        return
    if chosen.augment and backbone["class_name"] == "DiT":
        raise ValueError(
            "Augmentation needs a network that is conditioned on it, a U-Net such as "
            "edm_emoji16's: leave it out, or choose another preset. "
            f"Received: augment={chosen.augment}, preset={preset!r}"
        )
    augmentation = Augmentation(chosen.augment) if chosen.augment else None
    backbone["augment_features"] = Augmentation.num_parameters if augmentation else 0
    model["augmentation"] = augmentation and keras.saving.serialize_keras_object(augmentation)


def _check_dit(name: str, value: object, preset: str, backbone: dict) -> None:
    if backbone["class_name"] != "DiT":
        raise ValueError(
            f"`{name}` is for transformers: leave it out, or choose another preset. "
            f"Received: {name}={value!r}, preset={preset!r}"
        )


def _resolve_curriculum(config: dict, chosen: Curriculum) -> tuple[dict | None, list[float]]:
    """Returns a run's curriculum, None for plain training, and the edges of its clusters."""
    if chosen.patience is not None and chosen.stage_steps is not None:
        raise ValueError(
            "A stage ends by patience or after a fixed number of steps: leave one of both out. "
            f"Received: patience={chosen.patience}, stage_steps={chosen.stage_steps}"
        )
    model, staging = config["model"], {**config["curriculum"]}
    staging |= _not_none(num_clusters=chosen.num_clusters)
    pacing = _not_none(patience=chosen.patience, stage_steps=chosen.stage_steps)
    if pacing:  # in place of the preset's, of either kind
        staging = {k: v for k, v in staging.items() if k not in ("patience", "stage_steps")}
        staging |= pacing
    make_pacing(staging)
    wanted = staging["clusters"] if chosen.clusters is None else chosen.clusters
    found = _find_clusters(wanted, model, staging, chosen.num_clusters)
    staging.update(clusters=found.name, num_clusters=found.num_clusters)
    edges = found.get_config()["edges"]
    kind = chosen.curriculum
    return (None if kind == "none" else {"kind": kind, **staging, "edges": edges}), edges


def _find_clusters(
    clusters: str | Clusters, model: dict, staging: dict, num_clusters: int | None
) -> Clusters:
    """The clusters themselves, or read from a file, or made as their kind says."""
    if isinstance(clusters, str) and clusters in CLUSTERS:
        made = make_clusters(model, {**staging, "clusters": clusters})
        return dataclasses.replace(made, name=clusters)
    if not isinstance(clusters, Clusters) and not Path(clusters).is_file():
        raise ValueError(
            f"`clusters` must be one of {', '.join(CLUSTERS)}, or the path of a JSON file that "
            f"`Clusters.save` wrote. Received: clusters={str(clusters)!r}"
        )
    found = clusters if isinstance(clusters, Clusters) else Clusters.load(clusters)
    if num_clusters not in (None, found.num_clusters):
        raise ValueError(
            f"These clusters are {found.num_clusters}: leave their number out. "
            f"Received: clusters={str(clusters)!r}, num_clusters={num_clusters}"
        )
    schedule = keras.saving.deserialize_keras_object(model["schedule"])
    found.check_coordinate(schedule.coordinate)
    low, high = schedule.bounds
    if found.edges[0] > low or found.edges[-1] < high:
        raise ValueError(
            f"The clusters must cover the schedule's levels, {low:g} to {high:g}, or the rest would"
            " never be trained. "
            f"Received: clusters from {found.edges[0]:g} to {found.edges[-1]:g}"
        )
    return found


def _not_none(**values: object) -> dict:
    return {name: value for name, value in values.items() if value is not None}

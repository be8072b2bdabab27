"""The configuration of a training run: a preset with changes, as plain data that JSON can hold."""

import keras

from keras_cdiff.curriculum import (
    CurriculumCallback,
    PatiencePacing,
    quantile_clusters,
    snr_clusters,
    uniform_clusters,
)
from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.presets import preset as get_preset
from keras_cdiff.samplers import DDIM, DDPM, Heun, Sampler
from keras_cdiff.version import __version__

CURRICULA = ("paper", "none", "hard_to_easy", "isolated")
CLUSTERS = ("uniform", "snr", "quantile")
SAMPLERS = {"ddpm": DDPM, "ddim": DDIM, "heun": Heun}


def resolve(
    preset: str,
    *,
    data: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    horizontal_flip: bool | None = None,
    curriculum: str = "paper",
    clusters: str | None = None,
    num_clusters: int | None = None,
    patience: int | None = None,
    dtype_policy: str = "float32",
    seed: int = 0,
    log_every: int = 100,
    sample_every: int | None = None,
) -> dict:
    """Returns the whole configuration of a run: the preset, with what is not None in its place.

    The number of classes is left to the data (None) where neither an argument nor the preset's own
    data decides it.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """
    config = get_preset(preset)
    training, staging = config["training"], config["curriculum"]
    changes = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "horizontal_flip": horizontal_flip,
    }
    training.update({k: v for k, v in changes.items() if v is not None})
    training["log_every"] = log_every
    training["sample_every"] = sample_every if sample_every is not None else training["steps"]
    for name in ("steps", "batch_size", "log_every", "sample_every"):
        _check_positive(name, training[name], whole=True)
    _check_positive("learning_rate", training["learning_rate"])

    backbone = config["model"]["backbone"]
    if data not in (None, config["data"]):
        config["data"] = data
        if backbone["num_classes"]:
            backbone["num_classes"] = None
    if num_classes is not None:
        backbone["num_classes"] = num_classes
    if image_size is not None:
        _check_positive("image_size", image_size, whole=True)
        backbone["image_size"] = image_size
    backbone["dtype"] = dtype_policy

    _check_choice("curriculum", curriculum, CURRICULA)
    changes = {"clusters": clusters, "num_clusters": num_clusters, "patience": patience}
    staging.update({k: v for k, v in changes.items() if v is not None})
    _check_choice("clusters", staging["clusters"], CLUSTERS)
    PatiencePacing(staging["patience"])
    config["curriculum"] = {"kind": curriculum, **staging} if curriculum != "none" else None
    del config["description"], config["source"]
    return {
        "preset": preset,
        "seed": seed,
        "backend": keras.backend.backend(),
        "keras_cdiff": __version__,
        **config,
    }


def build_model(config: dict) -> DiffusionModel:
    """Returns the model of a resolved configuration, with fresh weights."""
    backbone = {k: v for k, v in config["model"]["backbone"].items() if k != "class_name"}
    return DiffusionModel.from_preset(config["preset"], seed=config["seed"], **backbone)


def build_optimizer(config: dict) -> keras.optimizers.Optimizer:
    """Returns AdamW with a linear warm-up to a rate that stays, or falls to zero as a cosine."""
    training = config["training"]
    warmup, rate = training["warmup_steps"], training["learning_rate"]
    cosine = training["learning_rate_schedule"] == "cosine"
    if warmup or cosine:
        # The warm-up of Keras comes with a cosine decay; with alpha = 1 that stays where it is.
        steps = max(training["steps"] - warmup, 1)
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else rate,
            decay_steps=steps,
            alpha=0.0 if cosine else 1.0,
            warmup_target=rate if warmup else None,
            warmup_steps=warmup,
        )
    return keras.optimizers.AdamW(rate, weight_decay=training["weight_decay"])


def build_curriculum(config: dict, model: DiffusionModel) -> CurriculumCallback | None:
    """Returns the callback of the configured curriculum, or None for plain training."""
    staging = config["curriculum"]
    if staging is None:
        return None
    kind, count = staging["kind"], staging["num_clusters"]
    if staging["clusters"] == "quantile":
        clusters = quantile_clusters(model.objective, count)
    else:
        make = {"uniform": uniform_clusters, "snr": snr_clusters}[staging["clusters"]]
        clusters = make(model.schedule, count)
    return CurriculumCallback(
        clusters,
        PatiencePacing(staging["patience"]),
        order="hard_to_easy" if kind == "hard_to_easy" else "easy_to_hard",
        cumulative=kind != "isolated",
    )


def build_sampler(name: str, num_steps: int | None = None) -> Sampler:
    """Returns the sampler called `name`, with its own default number of steps if there is none."""
    _check_choice("sampler", name, SAMPLERS)
    return SAMPLERS[name]() if num_steps is None else SAMPLERS[name](num_steps)


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(choices)}. Received: {name}={value!r}"
        )


def _check_positive(name: str, value: float, whole: bool = False) -> None:
    if not value > 0 or (whole and value != int(value)):
        kind = "an integer of at least 1" if whole else "positive"
        raise ValueError(f"`{name}` must be {kind}. Received: {name}={value!r}")

"""The parts of a training run, made from its configuration."""

import keras

from keras_cdiff.backbones.backbone import holds_latents
from keras_cdiff.curriculum import (
    Clusters,
    CurriculumCallback,
    FixedPacing,
    PatiencePacing,
    quantile_clusters,
    snr_clusters,
    uniform_clusters,
)
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.model.guarded_optimizer import GuardedOptimizer
from keras_cdiff.samplers import DDIM, DDPM, DPMSolver, Euler, Heun, Sampler

SAMPLERS = {"ddpm": DDPM, "ddim": DDIM, "euler": Euler, "heun": Heun, "dpm_solver": DPMSolver}


def build_model(config: dict) -> DiffusionModel:
    """Returns the model of a resolved configuration, with fresh weights."""
    return DiffusionModel.from_parts(config["model"], seed=config["seed"])


def build_optimizer(config: dict) -> keras.optimizers.Optimizer:
    """Returns AdamW with a linear warm-up to a rate that stays, or falls to zero as a cosine.

    Updates that are not finite are skipped. Under mixed_float16 it scales the loss, whose gradients
    would vanish in half precision.
    """
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
    batches = training["gradient_accumulation_steps"]
    optimizer = keras.optimizers.AdamW(
        rate,
        weight_decay=training["weight_decay"],
        global_clipnorm=training["global_clipnorm"],
        gradient_accumulation_steps=batches if batches > 1 else None,
    )
    if config["model"]["backbone"]["dtype"] == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return GuardedOptimizer(optimizer)


def build_curriculum(config: dict) -> CurriculumCallback | None:
    """Returns the callback of the configured curriculum, or None for plain training."""
    staging = config["curriculum"]
    if staging is None:
        return None
    return CurriculumCallback(
        Clusters.from_config({"edges": staging["edges"], "name": staging["clusters"]}),
        make_pacing(staging),
        order="hard_to_easy" if staging["kind"] == "hard_to_easy" else "easy_to_hard",
        cumulative=staging["kind"] != "isolated",
    )


def build_sampler(
    name: str, num_steps: int | None = None, is_latent: bool = False, **options: object
) -> Sampler:
    """Returns the sampler called `name`.

    Args:
        name: a name in `SAMPLERS`.
        num_steps: number of steps; None for the sampler's own default.
        is_latent: whether images are latents, whose estimates are not clamped to [-1, 1].
        **options: other arguments of that sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(
            f"`sampler` must be one of {', '.join(SAMPLERS)}. Received: sampler={name!r}"
        )
    count = {} if num_steps is None else {"num_steps": num_steps}
    # Solvers of the flow do not clamp by default, as EDM does not.
    clip = {"clip": False} if is_latent else {}
    return SAMPLERS[name](**count, **{**clip, **options})


def build_run_sampler(config: dict, num_steps: int | None = None) -> Sampler:
    """Returns the sampler of a configuration; `num_steps` of them, if it is not None."""
    sampling = config["sampling"]
    return build_sampler(
        sampling["sampler"],
        num_steps or sampling["num_steps"],
        trains_on_latents(config),
        **sampling.get("options", {}),
    )


def trains_on_latents(config: dict) -> bool:
    """Returns whether the model of a configuration works on latents."""
    return holds_latents(config["model"]["backbone"]["channels"])


def make_pacing(staging: dict) -> FixedPacing | PatiencePacing:
    """Returns what ends the stages of a configuration's curriculum.

    Args:
        staging: the curriculum, with its patience or the steps of each stage.
    """
    if "stage_steps" in staging:
        return FixedPacing(staging["stage_steps"])
    return PatiencePacing(staging["patience"])


def make_clusters(model: dict, staging: dict) -> Clusters:
    """Returns the clusters of noise levels of a configuration's curriculum.

    Args:
        model: the configuration's model, with its schedule and objective.
        staging: its curriculum, with the kind of clusters and their number.
    """
    schedule = keras.saving.deserialize_keras_object(model["schedule"])
    if staging["clusters"] == "quantile":
        objective = keras.saving.deserialize_keras_object(model["objective"])
        return quantile_clusters(objective, staging["num_clusters"])
    make = {"uniform": uniform_clusters, "snr": snr_clusters}[staging["clusters"]]
    return make(schedule, staging["num_clusters"])

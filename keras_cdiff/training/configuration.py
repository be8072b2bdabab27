"""The configuration of a training run: a preset with changes, as plain data that JSON can hold."""

import copy
import math
from collections.abc import Mapping

import keras

from keras_cdiff.augmentation import Augmentation
from keras_cdiff.common.checks import check_choice, check_integer
from keras_cdiff.curriculum import Clusters
from keras_cdiff.presets import preset as get_preset
from keras_cdiff.presets.parts import part
from keras_cdiff.training.curriculum_settings import given, resolve_curriculum
from keras_cdiff.version import __version__

# Of the loss, with the values of their papers.
WEIGHTINGS = {
    "constant": part("Constant"),
    "min_snr": part("MinSNR", gamma=5.0),
    "p2": part("P2", gamma=1.0, k=1.0),
}
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def resolve(
    preset: str | Mapping,
    *,
    data: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    text_encoder: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    horizontal_flip: bool | None = None,
    augment: float | None = None,
    curriculum: str = "paper",
    clusters: str | Clusters | None = None,
    num_clusters: int | None = None,
    patience: int | None = None,
    stage_steps: int | None = None,
    weighting: str | None = None,
    dtype_policy: str = "float32",
    jit_compile: bool | str = "auto",
    seed: int = 0,
    log_every: int = 100,
    sample_every: int | None = None,
    checkpoint_every: int = 500,
    keep_last: int = 3,
    keep_every: int | None = None,
    max_nonfinite: int = 10,
    gradient_accumulation_steps: int = 1,
    global_clipnorm: float | None = None,
    rematerialize: bool = False,
    evaluate_every: int | None = None,
    evaluate_samples: int = 1000,
    extractor: str = "mobilenet_v2",
    validate_every: int | None = None,
    validation_data: str | None = None,
    validation_images: int = 256,
) -> dict:
    """Returns the whole configuration of a run: the preset, with what is not None in its place.

    No data is opened. Where other data than the preset's is given without a number of classes, a
    class-conditional preset leaves the number to the data: it is None. A text encoder leaves the
    width of contexts to itself in the same way.

    Args:
        preset: a name in `keras_cdiff.presets.PRESETS`; or a preset of one's own, such as
            `keras_cdiff.presets.preset` returns and you have changed, with its "name".
        data: what `keras_cdiff.data.open_source` takes.
        image_size: side of what the network sees: of images in pixels, of latents in latent pixels,
            which are 1/8 of the images' for Stable Diffusion's autoencoder.
        num_classes: number of classes, 0 for an unconditional model.
        text_encoder: what `keras_cdiff.data.open_text_encoder` takes; it makes a DiT one that is
            conditioned on the data's captions, and on no classes unless `num_classes` is given.
        steps: training steps.
        batch_size: images a step.
        learning_rate: the rate after the warm-up.
        horizontal_flip: whether half the images are mirrored.
        augment: probability in [0, 1] of each of the augmentations that a U-Net is told of; 0 for
            none.
        curriculum: "paper" (easy to hard, cumulative), "none", "hard_to_easy" or "isolated".
        clusters: "uniform", "snr" or "quantile"; or `Clusters`, or the path of a file that
            `Clusters.save` wrote. Like the number below it only decides how a validation loss is
            reported, and like the patience nothing else, where the curriculum is "none".
        num_clusters: number of clusters; that of the file, if they come from one.
        patience: iterations without improvement that a stage may last.
        stage_steps: iterations of every stage, whatever the loss does, instead of the patience.
        weighting: of the loss, a name in `WEIGHTINGS`; the preset's if None.
        dtype_policy: "float32", "mixed_bfloat16" or "mixed_float16", of the network.
        jit_compile: as for `DiffusionModel.compile`: "auto", or a bool, or its name in lower case.
        seed: seed of weights, data order and noise, in [0, 2^32).
        log_every: steps between two records of the log.
        sample_every: steps between two grids of samples; one at the end if None.
        checkpoint_every: steps between two checkpoints.
        keep_last: how many of the latest checkpoints are kept.
        keep_every: checkpoints of steps divisible by it are kept as well.
        max_nonfinite: steps in a row with a loss that is not finite, which are skipped, before the
            run ends with an error.
        gradient_accumulation_steps: batches whose gradients are averaged for one update; steps
            count batches.
        global_clipnorm: greatest norm of all gradients together; not limited if None.
        rematerialize: whether a DiT saves memory by computing activations twice.
        evaluate_every: steps between two evaluations of samples against the training data; none if
            None.
        evaluate_samples: samples drawn for each.
        extractor: network that sees them, as `keras_cdiff.evaluation.open_extractor` takes it.
        validate_every: steps between two measurements of the loss per cluster on images that
            training does not see; none if None.
        validation_data: those images, as `data`.
        validation_images: how many of them, at even distances; all if there are fewer.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """
    preset, config = _open_preset(preset)
    training, staging = config["training"], config["curriculum"]
    check_choice("jit_compile", jit_compile, ("auto", "true", "false", True, False))
    training.update(
        given(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            horizontal_flip=horizontal_flip,
        ),
        jit_compile={"true": True, "false": False}.get(jit_compile, jit_compile),
        log_every=log_every,
        max_nonfinite=max_nonfinite,
        gradient_accumulation_steps=gradient_accumulation_steps,
        global_clipnorm=global_clipnorm,
    )
    training["sample_every"] = training["steps"] if sample_every is None else sample_every
    for name in ("steps", "batch_size", "log_every", "sample_every", "gradient_accumulation_steps"):
        check_integer(name, training[name], 1)
    check_integer("max_nonfinite", max_nonfinite, 0)
    for name, value in (
        ("learning_rate", training["learning_rate"]),
        ("global_clipnorm", global_clipnorm),
    ):
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"`{name}` must be positive and finite. Received: {name}={value!r}")
    check_integer("seed", seed, 0, 2**32 - 1)

    backbone = config["model"]["backbone"]
    if data not in (None, config["data"]):
        config["data"] = data
        if backbone["num_classes"]:
            backbone["num_classes"] = None
    backbone.update(given(num_classes=num_classes, image_size=image_size), dtype=dtype_policy)
    if num_classes is not None:
        check_integer("num_classes", num_classes, 0)
    check_integer("image_size", backbone["image_size"], 1)
    config.setdefault("text_encoder", None)
    if text_encoder is not None:
        _check_dit("text_encoder", text_encoder, preset, backbone)
        backbone["context_width"] = None
        config["text_encoder"] = text_encoder
        backbone["num_classes"] = num_classes or 0
    if config["text_encoder"] is not None:
        config["text_encoder"] = {"name": config["text_encoder"]}
    if augment is not None:
        _augment(config, preset, augment)
    # What the network divides the image by: into patches, or by halving it level by level.
    divisor = backbone.get("patch_size") or 2 ** (len(backbone["channel_multipliers"]) - 1)
    if backbone["image_size"] % divisor:
        raise ValueError(
            f"`image_size` must be a multiple of {divisor} for the network of {preset}. "
            f"Received: image_size={image_size}"
        )
    check_choice("dtype_policy", dtype_policy, DTYPE_POLICIES)

    if rematerialize:
        _check_dit("rematerialize", rematerialize, preset, backbone)
        backbone["rematerialize"] = True

    config["checkpoints"] = {
        "every": checkpoint_every,
        "keep_last": keep_last,
        "keep_every": keep_every,
    }
    check_integer("checkpoint_every", checkpoint_every, 1)
    check_integer("keep_last", keep_last, 1)
    if keep_every is not None:
        check_integer("keep_every", keep_every, 1)
    config["evaluation"] = config["validation"] = None
    if evaluate_every is not None:
        check_integer("evaluate_every", evaluate_every, 1)
        check_integer("evaluate_samples", evaluate_samples, 2)
        config["evaluation"] = {
            "every": evaluate_every,
            "num_samples": evaluate_samples,
            "extractor": extractor,
        }
    if (validate_every is None) != (validation_data is None):
        raise ValueError(
            "Validation needs both a number of steps and images: give both, or neither. "
            f"Received: validate_every={validate_every}, validation_data={validation_data!r}"
        )
    if validate_every is not None:
        check_integer("validate_every", validate_every, 1)
        check_integer("validation_images", validation_images, 2)
        config["validation"] = {
            "every": validate_every,
            "data": validation_data,
            "num_images": validation_images,
        }

    if weighting is not None:
        check_choice("weighting", weighting, WEIGHTINGS)
        config["model"]["objective"]["config"]["weighting"] = copy.deepcopy(WEIGHTINGS[weighting])
    config["curriculum"], edges = resolve_curriculum(
        config["model"], staging, curriculum, clusters, num_clusters, patience, stage_steps
    )
    if config["validation"]:  # with the same clusters, whether a curriculum trains them or none
        config["validation"]["edges"] = edges
    config["autoencoder"] = None  # what the data says of it, if it is latents
    for words in ("description", "source"):
        config.pop(words, None)
    return {
        "preset": preset,
        "seed": seed,
        "backend": keras.backend.backend(),
        "keras_cdiff": __version__,
        **config,
    }


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


def _augment(config: dict, preset: str, probability: float) -> None:
    """Sets the augmentation in a preset's configuration, and the network that is told of it."""
    backbone = config["model"]["backbone"]
    if probability and backbone["class_name"] == "DiT":
        raise ValueError(
            "Augmentation needs a network that is told of it, a U-Net such as edm_emoji16's: leave "
            f"it out, or choose another preset. Received: augment={probability}, preset={preset!r}"
        )
    augmentation = Augmentation(probability) if probability else None
    backbone["augment_features"] = Augmentation.num_parameters if probability else 0
    config["model"]["augmentation"] = (
        None if augmentation is None else keras.saving.serialize_keras_object(augmentation)
    )


def _check_dit(name: str, value: object, preset: str, backbone: dict) -> None:
    if backbone["class_name"] != "DiT":
        raise ValueError(
            f"`{name}` is for transformers: leave it out, or choose another preset. "
            f"Received: {name}={value!r}, preset={preset!r}"
        )

"""The settings of training runs and of sampling: each once, with all that is said of it.

`resolve`, its checks, the flags of the apps and their --help, config.json, what may change when a
run goes on, and the table in docs/resuming.md are made from these fields. The apps define flags
before Keras is imported, so this file imports the standard library alone.
"""

import dataclasses
import types
import typing


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field says of its setting, besides its type and default.

    Attributes:
        help: one or two sentences.
        least, most: bounds of a number, inclusive.
        positive: whether it must be above 0, and finite.
        choices: the values that it can have.
        of_preset: whether None stands for the preset's value.
        key: its name in config.json, if that is not the field's.
        may_change: whether a run that goes on may have another value.
    """

    help: str
    least: int | float | None = None
    most: int | float | None = None
    positive: bool = False
    choices: tuple[str, ...] = ()
    of_preset: bool = False
    key: str | None = None
    may_change: bool = False


def setting(default: object, help: str, **properties: object) -> typing.Any:
    """Returns a dataclass field for a setting; the properties are those of `Setting`."""
    if properties.get("of_preset"):
        help += " Default: the preset's."
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **properties)})


@dataclasses.dataclass(frozen=True)
class Data:
    """The data and what it is conditioned on."""

    section = None  # of config.json; these lie where they belong

    data: str | None = setting(
        None,
        "Images: emoji, npz:PATH, folder:PATH or tfds:NAME[:SPLIT]; or latents:PATH, which "
        "apps/encode.py wrote.",
        of_preset=True,
    )
    image_size: int | None = setting(
        None, "Side of the images in pixels, or of the latents.", of_preset=True, least=1
    )
    num_classes: int | None = setting(
        None, "Classes; 0 for none. Default: the preset's, or those of other data.", least=0
    )
    text_encoder: str | None = setting(
        None,
        "Condition a DiT on the data's captions, embedded by minilm:FILE, clip or clip:FOLDER, and "
        "on no classes unless num_classes is set.",
        of_preset=True,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """Training."""

    section = "training"

    steps: int | None = setting(None, "Training steps.", of_preset=True, least=1, may_change=True)
    batch_size: int | None = setting(
        None, "Images a step, of all devices together.", of_preset=True, least=1
    )
    learning_rate: float | None = setting(
        None, "Learning rate after the warm-up.", of_preset=True, positive=True
    )
    learning_rate_schedule: str | None = setting(
        None,
        "Whether the rate stays or falls to 0 as a cosine.",
        of_preset=True,
        choices=("constant", "cosine"),
    )
    warmup_steps: int | None = setting(
        None, "Steps in which the rate rises from 0.", of_preset=True, least=0
    )
    weight_decay: float | None = setting(
        None, "Decoupled weight decay of AdamW.", of_preset=True, least=0.0
    )
    horizontal_flip: bool | None = setting(
        None, "Whether half the images are mirrored.", of_preset=True
    )
    gradient_accumulation_steps: int = setting(
        1, "Batches whose gradients are averaged for one update; steps count batches.", least=1
    )
    global_clipnorm: float | None = setting(
        None, "Greatest norm of all gradients together. Default: no limit.", positive=True
    )
    jit_compile: str | bool = setting(
        "auto",
        "Whether XLA or torch.compile compiles the training step; auto: what suits the network.",
        choices=("auto", "true", "false"),
    )
    max_nonfinite: int = setting(
        10,
        "Steps in a row with a NaN or infinite loss, which are skipped, before the run ends.",
        least=0,
        may_change=True,
    )
    log_every: int = setting(100, "Steps between two records of the log.", least=1, may_change=True)
    sample_every: int | None = setting(
        None,
        "Steps between two grids of samples. Default: one at the end.",
        least=1,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """The model and its loss."""

    section = None

    dtype_policy: str = setting(
        "float32",
        "Precision of the network; noise levels and losses stay float32.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    seed: int = setting(0, "Seed of weights, data order and noise.", least=0, most=2**32 - 1)
    weighting: str | None = setting(
        None,
        "Weighting of the loss, with its paper's values.",
        of_preset=True,
        choices=("constant", "min_snr", "p2"),
    )
    augment: float | None = setting(
        None,
        "Probability of each of EDM's augmentations, for U-Nets; 0 for none.",
        of_preset=True,
        least=0.0,
        most=1.0,
    )
    rematerialize: bool = setting(False, "Save memory in a DiT by computing activations twice.")


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The curriculum over noise levels."""

    section = None

    curriculum: str = setting(
        "paper",
        "paper: easy to hard, cumulative; none: the whole noise range from the start; "
        "hard_to_easy: the reverse, as a control; isolated: each cluster alone, as a control.",
        choices=("paper", "none", "hard_to_easy", "isolated"),
    )
    clusters: object = setting(
        None,
        "How the noise range is cut into clusters: uniform, snr or quantile, or the path of a JSON "
        "file, such as apps/study.py writes from measured difficulty.",
        of_preset=True,
    )
    num_clusters: int | None = setting(None, "Number of clusters.", of_preset=True, least=1)
    patience: int | None = setting(
        None, "Iterations without improvement that a stage may last.", of_preset=True, least=1
    )
    stage_steps: int | None = setting(
        None,
        "Iterations of every stage, whatever the loss does, instead of the patience.",
        least=1,
        most=2**24 - 1,
    )


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Checkpoints."""

    section = "checkpoints"

    checkpoint_every: int = setting(
        500,
        "Steps between two checkpoints, from the newest of which the same command goes on.",
        least=1,
        key="every",
        may_change=True,
    )
    keep_last: int = setting(
        3,
        "How many of the latest checkpoints are kept.",
        least=1,
        may_change=True,
    )
    keep_every: int | None = setting(
        None,
        "Checkpoints of steps divisible by this are kept as well. Default: none.",
        least=1,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of samples while the model trains."""

    section = "evaluation"

    evaluate_every: int | None = setting(
        None,
        "Steps between two evaluations of samples against the training data. Default: none.",
        least=1,
        key="every",
        may_change=True,
    )
    evaluate_samples: int = setting(
        1000, "Samples of each evaluation.", least=2, key="num_samples", may_change=True
    )
    extractor: str = setting(
        "mobilenet_v2",
        "Network that sees the samples; see apps/evaluate.py --help.",
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Validation:
    """Validation loss per cluster while the model trains."""

    section = "validation"

    validate_every: int | None = setting(
        None,
        "Steps between two measurements of the loss per cluster on the validation data. Default: "
        "none.",
        least=1,
        key="every",
        may_change=True,
    )
    validation_data: str | None = setting(
        None, "Images that training does not see, as --data.", key="data", may_change=True
    )
    validation_images: int = setting(
        256, "How many of them, at even distances.", least=2, key="num_images", may_change=True
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling."""

    sampler: str | None = setting(
        None,
        "How noise becomes an image.",
        of_preset=True,
        choices=("ddpm", "ddim", "euler", "heun", "dpm_solver"),
    )
    num_steps: int | None = setting(
        None, "Steps of the sampler. Default: the preset's for its own sampler.", least=1
    )
    guidance: float | None = setting(
        None, "Scale of the guidance, 1 for none.", of_preset=True, least=0.0
    )
    guidance_interval: tuple[float, float] | None = setting(
        None,
        "LOW,HIGH: guide only at these noise levels, in the schedule's own unit. Default: at all.",
    )
    use_ema: bool = setting(True, "Whether the averaged weights are used.")
    batch_size: int = setting(64, "Samples drawn at once.", least=1)
    seed: int = setting(0, "Sample i is drawn with seed + i.", least=0)


# The settings of a run, in the order in which --help shows them.
GROUPS = (Data, Training, Curriculum, Model, Checkpoints, Evaluation, Validation)


def describe(field: dataclasses.Field) -> tuple[Setting, type]:
    """Returns what a field says of its setting, and the type of its values other than None."""
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else [field.type]
    return field.metadata["setting"], kinds[0]


def key_of(field: dataclasses.Field) -> str:
    """Returns the name of a setting in its section of config.json."""
    return field.metadata["setting"].key or field.name

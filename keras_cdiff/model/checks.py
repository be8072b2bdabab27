"""Checks of what a user hands to a model: its parts, arrays before training, tensors by shape."""

import keras
import numpy as np

from keras_cdiff.backbones.backbone import NetworkInputs, check_context
from keras_cdiff.distribution.replica import replica
from keras_cdiff.objectives import Objective
from keras_cdiff.parameterizations import Parameterization
from keras_cdiff.schedules import DiscreteSchedule, Schedule

_NAMES = ("image", "label", "context", "level", "noise")


def check_images(images: np.ndarray, image_shape: tuple[int, int, int], is_latent: bool) -> None:
    """Raises a ValueError unless `images` is finite float (N, *image_shape), in [-1, 1] unless they
    are latents.
    """
    _check_static(images.shape, str(images.dtype), image_shape)
    if not len(images):
        raise ValueError(f"`image` must hold at least one image. Received: shape={images.shape}")
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise ValueError(
            "`image` must be finite. Remove or repair the images that hold NaN or infinity. "
            f"Received: {np.count_nonzero(~finite)} such images, first at index {np.argmin(finite)}"
        )
    limit = 50.0 if is_latent else 1.001  # latents have units of their own
    low, high = float(images.min()), float(images.max())
    if low < -limit or high > limit:
        raise ValueError(
            "`image` must be scaled to [-1, 1], for instance by images / 127.5 - 1 from uint8. "
            f"Received: values from {low:g} to {high:g}"
        )


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raises a ValueError unless `labels` is an integer array (N,) of classes or null labels."""
    labels = np.asarray(labels)
    _check_label_dtype(str(labels.dtype), num_classes)
    if labels.size and not 0 <= labels.min() <= labels.max() <= num_classes:
        raise ValueError(
            f"`label` must lie in 0..{num_classes - 1}, or be the null label {num_classes}. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )


def check_contexts(contexts: np.ndarray, context_width: int | None) -> None:
    """Raises a ValueError unless `contexts` is finite float (N, L, context_width)."""
    if context_width is not None:
        check_context(contexts.shape, str(contexts.dtype), context_width)
    if not np.isfinite(contexts).all():
        raise ValueError(
            "`context` must be finite: look for the texts whose embeddings are not. "
            f"Received: {np.count_nonzero(~np.isfinite(contexts))} values that are NaN or infinite"
        )


def check_arrays(x: object, y: object, inputs: NetworkInputs) -> None:
    """Raises a ValueError unless those of the inputs of `fit` that are arrays can be trained on.

    Args:
        x: images, or a dict as a `DiffusionModel` takes it.
        y: labels, or None.
        inputs: what the model's network takes.
    """
    batch = dict(x) if isinstance(x, dict) else {"image": x}
    if isinstance(x, dict):
        check_names(batch)
    if y is not None:
        batch["label"] = y
    images, labels, contexts = (batch.get(name) for name in ("image", "label", "context"))
    if isinstance(images, np.ndarray):
        if replica().count > 1:
            raise ValueError(
                "Each process would train on all of these images: give fit() what the engine's "
                "`batches` makes of a data set of its own `shard`. "
                f"Received: an array of shape {images.shape}"
            )
        check_images(images, inputs.image_shape, inputs.is_latent)
    if isinstance(labels, np.ndarray | list):
        check_labels(labels, inputs.num_classes)
    if isinstance(contexts, np.ndarray):
        check_contexts(contexts, inputs.context_width)


def check_names(batch: dict) -> None:
    """Raises a ValueError unless the batch holds "image", and nothing that is unknown."""
    if "image" not in batch or not set(batch) <= set(_NAMES):
        raise ValueError(
            f'A batch must hold "image" and may hold {", ".join(_NAMES[1:])}. '
            f"Received: keys={sorted(batch)}"
        )


def check_batch(batch: dict, inputs: NetworkInputs) -> None:
    """Raises a ValueError unless names, static shapes and dtypes are those that the model takes."""
    check_names(batch)
    present = {name: value for name, value in batch.items() if value is not None}
    dtypes = {k: keras.backend.standardize_dtype(v.dtype) for k, v in present.items()}
    _check_static(tuple(batch["image"].shape), dtypes["image"], inputs.image_shape)
    if "label" in dtypes:
        _check_label_dtype(dtypes["label"], inputs.num_classes)
    if "context" in dtypes and inputs.context_width is not None:
        check_context(tuple(batch["context"].shape), dtypes["context"], inputs.context_width)


def check_parts(
    backbone: keras.Model,
    schedule: Schedule,
    parameterization: Parameterization,
    objective: Objective,
) -> None:
    """Raises a ValueError unless the parts of a `DiffusionModel` fit together."""
    for name, value, kind in (
        ("schedule", schedule, Schedule),
        ("parameterization", parameterization, Parameterization),
        ("objective", objective, Objective),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` must be a {kind.__name__}. Received: {name}={value!r}")
    _check_levels(schedule, objective)
    learned = parameterization.learned_variance
    if learned and not isinstance(schedule, DiscreteSchedule):
        raise ValueError(
            "A learned variance needs a schedule of timesteps, such as LinearBeta. "
            f"Received: schedule={type(schedule).__name__}"
        )
    expected = backbone.channels * parameterization.output_multiple
    if backbone.out_channels != expected:
        raise ValueError(
            f"With {type(parameterization).__name__}(learned_variance={learned}) the backbone must "
            f"have out_channels={expected}. Received: out_channels={backbone.out_channels}"
        )


def _check_levels(schedule: Schedule, objective: Objective) -> None:
    """Raises a ValueError unless all levels that the objective draws are levels of the schedule."""
    (first, last), (low, high) = objective.support, schedule.domain
    if schedule.coordinate == "timestep":
        inside = (first, last) == (low, high)
    else:
        inside = low <= first and last <= high
    if objective.coordinate != schedule.coordinate or not inside:
        raise ValueError(
            f"The objective must draw levels of the schedule, here {schedule.coordinate} within "
            f"[{low:g}, {high:g}], not {objective.coordinate} within [{first:g}, {last:g}]: choose "
            "an objective of that kind and range. "
            f"Received: schedule={_described(schedule)}, objective={_described(objective)}"
        )


def _described(part: Schedule | Objective) -> str:
    numbers = {k: v for k, v in part.get_config().items() if isinstance(v, int | float)}
    arguments = ", ".join(f"{name}={value}" for name, value in numbers.items())
    return f"{type(part).__name__}({arguments})"


def _check_static(shape: tuple, dtype: str, image_shape: tuple[int, int, int]) -> None:
    if len(shape) != 4 or any(
        size not in (None, expected) for size, expected in zip(shape[1:], image_shape, strict=True)
    ):
        raise ValueError(
            f"`image` must have the shape (batch, {', '.join(map(str, image_shape))}), channels "
            f"last. Received: shape={shape}"
        )
    if "float" not in dtype:
        raise ValueError(
            "`image` must be of a float dtype, scaled to [-1, 1], for instance by "
            f"images / 127.5 - 1 from uint8. Received: dtype={dtype}"
        )


def _check_label_dtype(dtype: str, num_classes: int) -> None:
    if num_classes == 0:
        raise ValueError(
            "This model takes no labels: build its backbone with num_classes, or leave labels out. "
            f"Received: label of dtype {dtype}"
        )
    if "int" not in dtype:
        raise ValueError(
            f"`label` must be integers in 0..{num_classes - 1}. Received: dtype={dtype}"
        )

"""Evaluation of a run's model: of its samples and its loss while it trains, and afterwards."""

import keras
import numpy as np

from keras_cdiff.data import Source, open_source, read_images
from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.evaluation import (
    EvaluationCallback,
    Evaluator,
    FeatureStatistics,
    GeneratedImages,
    ImageSet,
    Result,
    SourceImages,
    ValidationLoss,
    ValidationLossCallback,
    as_reference,
    open_extractor,
    proportional_labels,
)
from keras_cdiff.samplers import Sampler
from keras_cdiff.tensorboard import TensorBoardWriter
from keras_cdiff.training.generation import sampling_settings
from keras_cdiff.training.workdir import Workdir

# Images of the training data that samples are compared with while a model trains.
MAX_REFERENCE = 50_000


def evaluate_model(
    model: DiffusionModel,
    config: dict,
    evaluator: Evaluator,
    reference: str | None = None,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    use_ema: bool = True,
    batch_size: int = 64,
    name: str | None = None,
) -> Result:
    """Returns the metrics of a model's samples against a reference.

    The reference's images are prepared as training prepares them: at the model's size and number of
    channels. Where they have the model's classes, samples are drawn in their proportions, else of
    all classes in turn.

    Args:
        model: the trained model.
        config: its configuration, whose data, sampler, steps and guidance are the defaults.
        evaluator: what compares.
        reference: name of a data source, or "statistics:PATH"; None for the training data.
        num_samples: N.
        seed: sample i has the seed `seed` + i.
        sampler, num_steps, guidance, guidance_interval, use_ema, batch_size: as for `generate`.
        name: what the samples are called in results; by default as the preset.

    Raises:
        ValueError: if an argument is out of its range or does not fit the model, or the reference
            cannot be read.
    """
    size, _, channels = model.image_shape
    reference = as_reference(reference or config["data"])
    if isinstance(reference, SourceImages):
        reference = SourceImages(reference.source, size, channels)
    label = labels_like(model, reference, num_samples, seed)
    options = sampling_settings(
        model,
        config,
        num_samples,
        sampler=sampler,
        num_steps=num_steps,
        label=label,
        guidance=guidance,
        guidance_interval=guidance_interval,
    )
    generated = GeneratedImages(
        model,
        num_samples,
        **options,
        seed=seed,
        use_ema=use_ema,
        batch_size=batch_size,
        name=name or config["preset"],
    )
    return evaluator.evaluate(generated, reference)


def evaluation_callbacks(
    model: DiffusionModel,
    config: dict,
    source: Source,
    sampler: Sampler,
    workdir: Workdir,
    tensorboard: TensorBoardWriter,
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that evaluate a run while it trains, as its configuration asks for.

    Args:
        model: the model that is trained.
        config: the resolved configuration.
        source: the training data, the reference for samples.
        sampler: how samples are drawn.
        workdir: the run's folder.
        tensorboard: the run's events.

    Raises:
        ValueError: if the extractor cannot be opened, or the validation data does not fit the
            model.
    """
    callbacks = []
    size, _, channels = model.image_shape
    if config.get("evaluation"):
        settings, count = config["evaluation"], config["evaluation"]["num_samples"]
        reference = SourceImages(source, size, channels, min(len(source), MAX_REFERENCE))
        evaluator = Evaluator(
            open_extractor(settings["extractor"]), cache=workdir.features, cache_generated=False
        )
        callbacks.append(
            EvaluationCallback(
                evaluator,
                reference,
                settings["every"],
                count,
                sampler,
                label=labels_like(model, reference, count),
                guidance=config["sampling"]["guidance"] if model.num_classes else 1.0,
                path=workdir.evaluation_file,
                tensorboard=tensorboard,
            )
        )
    if config.get("validation"):
        settings = config["validation"]
        images, labels = _held_out(settings["data"], settings["num_images"], model, source)
        validation_loss = ValidationLoss(images, labels, settings["edges"])
        validation_loss.check(model)
        callbacks.append(
            ValidationLossCallback(
                validation_loss,
                settings["every"],
                path=workdir.validation_file,
                tensorboard=tensorboard,
            )
        )
    return callbacks


def labels_like(
    model: DiffusionModel,
    reference: ImageSet | FeatureStatistics,
    num_samples: int,
    seed: int = 0,
) -> np.ndarray | None:
    """Returns labels in the reference's proportions, if it has the model's classes, else None."""
    if isinstance(reference, FeatureStatistics):
        counts = reference.description.get("labels") or {}
        labels = np.repeat([int(label) for label in counts], list(counts.values()))
    else:
        labels = reference.labels()
    if labels is None or len(labels) == 0 or not model.num_classes:
        return None
    return (
        proportional_labels(labels, num_samples, seed) if max(labels) < model.num_classes else None
    )


def _held_out(
    data: str, num_images: int, model: DiffusionModel, training: Source
) -> tuple[np.ndarray, np.ndarray | None]:
    """Up to `num_images` images of a source at even distances, prepared as training does, and
    labels as training has them.
    """
    source = open_source(data)
    size, _, channels = model.image_shape
    images, labels = read_images(source, size, channels, num_images)
    if not model.num_classes or not source.num_classes:
        return images, None
    if source.class_names and training.class_names:
        unknown = sorted(set(source.class_names) - set(training.class_names))
        if unknown:
            raise ValueError(
                "The validation data must have classes of the training data, which are "
                f"{', '.join(training.class_names)}: choose other images. "
                f"Received: validation_data={data!r}, with {', '.join(unknown)}"
            )
        labels = np.array([training.class_names.index(name) for name in source.class_names])[labels]
    return images, labels

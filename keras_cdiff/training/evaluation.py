"""Evaluation of a run's model: of its samples and its loss while it trains, and afterwards."""

import functools

import keras
import numpy as np

from keras_cdiff.autoencoders import Autoencoder
from keras_cdiff.common.arrays import evenly_spaced
from keras_cdiff.common.tensorboard import TensorBoardWriter
from keras_cdiff.data import (
    Source,
    TextContexts,
    TextEncoder,
    open_source,
    read_images,
)
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
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Sampler
from keras_cdiff.training.configuration import choose, with_settings
from keras_cdiff.training.generation import sampling_settings
from keras_cdiff.training.run_data import (
    RunData,
    open_run_autoencoder,
    open_run_text_encoder,
)
from keras_cdiff.training.settings import Sampling
from keras_cdiff.training.workdir import Workdir

# Images of the training data that samples are compared with while a model trains.
MAX_REFERENCE = 50_000


@with_settings(Sampling)
def evaluate_model(
    model: DiffusionModel,
    config: dict,
    evaluator: Evaluator,
    reference: str | None = None,
    *,
    num_samples: int = 10_000,
    name: str | None = None,
    **changes: object,
) -> Result:
    """Returns the metrics of a model's samples against a reference.

    The reference's images are prepared as training prepares them: at the model's size and number of
    channels, or those that its latents are decoded to. Where they have the model's classes, samples
    are drawn in their proportions, else of all classes in turn. A model conditioned on text gets
    captions of the reference.

    Args:
        model: the trained model.
        config: its configuration, whose data, sampler, steps and guidance are the defaults.
        evaluator: what compares.
        reference: name of a data source, or "statistics:PATH"; None for the training data, of
            latents the images that they were made of.
        num_samples: N.
        name: what the samples are called in results; by default as the preset.
        **changes: settings of sampling:{settings}

    Raises:
        ValueError: if an argument is out of its range or does not fit the model, or the reference
            cannot be read.
    """
    autoencoder = open_run_autoencoder(config, model)
    if reference is None:
        reference = config["data"] if autoencoder is None else _encoded_images(config)
    reference = as_reference(reference)
    if isinstance(reference, SourceImages):
        reference = SourceImages(reference.source, *_pixels(model, autoencoder))
    text_encoder = open_run_text_encoder(config)
    chosen = choose(Sampling, changes)
    label, context = conditions_like(model, text_encoder, reference, num_samples, chosen.seed)
    generated = GeneratedImages(
        model,
        num_samples,
        **sampling_settings(model, config, num_samples, label=label, context=context, **changes),
        seed=chosen.seed,
        use_ema=chosen.use_ema,
        batch_size=chosen.batch_size,
        name=name or config["preset"],
        autoencoder=autoencoder,
    )
    return evaluator.evaluate(generated, reference)


def evaluation_callbacks(
    model: DiffusionModel,
    data: RunData,
    sampler: Sampler,
    workdir: Workdir,
    tensorboard: TensorBoardWriter,
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that evaluate a run while it trains, as its configuration says.

    Args:
        model: the model that is trained.
        data: what it trains on, the reference for samples.
        sampler: how samples are drawn.
        workdir: the run's folder.
        tensorboard: the run's events.

    Raises:
        ValueError: if the extractor cannot be opened, or the validation data does not fit the
            model.
    """
    config, source, text_encoder = data.config, data.source, data.text_encoder
    autoencoder = data.autoencoder
    callbacks = []
    if config.get("evaluation"):
        settings, count = config["evaluation"], config["evaluation"]["num_samples"]
        images = source if autoencoder is None else open_source(_encoded_images(config))
        size, channels = _pixels(model, autoencoder)
        reference = SourceImages(images, size, channels, min(len(images), MAX_REFERENCE))
        label, context = conditions_like(model, text_encoder, reference, count)
        guided = model.num_classes or context is not None
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
                label=label,
                guidance=config["sampling"]["guidance"] if guided else 1.0,
                generate=functools.partial(
                    GeneratedImages, context=context, autoencoder=autoencoder
                ),
                path=workdir.evaluation_file,
                tensorboard=tensorboard,
            )
        )
    if config.get("validation"):
        settings = config["validation"]
        held_out = open_source(settings["data"])
        _check_autoencoder(config, held_out)
        images, labels = _held_out(held_out, settings["num_images"], model, source)
        context = contexts_like(text_encoder, SourceImages(held_out), len(images))
        validation_loss = ValidationLoss(
            images, labels, settings["edges"], context=None if context is None else context[:]
        )
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


def conditions_like(
    model: DiffusionModel,
    text_encoder: TextEncoder | None,
    reference: ImageSet | FeatureStatistics,
    num_samples: int,
    seed: int = 0,
) -> tuple[np.ndarray | None, TextContexts | None]:
    """Returns the labels and the contexts of samples to be compared with a reference: labels in its
    proportions, or, where there are texts, captions of its images with the labels of the same ones.
    """
    context = contexts_like(text_encoder, reference, num_samples)
    if context is None:
        return labels_like(model, reference, num_samples, seed), None
    labels = reference.source.labels()
    if not model.num_classes or labels is None or labels.max() >= model.num_classes:
        return None, context
    return labels[evenly_spaced(num_samples, len(labels))], context


def contexts_like(
    text_encoder: TextEncoder | None,
    reference: ImageSet | FeatureStatistics,
    num_samples: int,
) -> TextContexts | None:
    """Returns contexts of the first captions of a reference's images, at even distances as
    `read_images` takes them, images repeating where there are fewer; None without an encoder.

    Raises:
        ValueError: if there is an encoder, and the reference has no captions.
    """
    if text_encoder is None:
        return None
    captions = reference.source.captions() if isinstance(reference, SourceImages) else None
    if captions is None:
        raise ValueError(
            "A model conditioned on text is measured with captions: give images that have some. "
            f"Received: {getattr(reference, 'name', reference)!r} without captions"
        )
    texts = [captions[place][0] for place in evenly_spaced(num_samples, len(captions))]
    return TextContexts(text_encoder, texts)


def _encoded_images(config: dict) -> str:
    """The images of which the latents were made that a run is trained on."""
    described = config.get("autoencoder") or {}
    if "images" not in described:
        raise ValueError(
            "Of which images these latents were made is not known: give a reference. "
            f"Received: preset={config['preset']!r}, without a run's data"
        )
    return described["images"]


def _pixels(model: DiffusionModel, autoencoder: Autoencoder | None) -> tuple[int, int]:
    """Size and channels of a model's images, decoded if they are latents."""
    size, _, channels = model.image_shape
    return (size, channels) if autoencoder is None else (size * autoencoder.factor, 3)


def _check_autoencoder(config: dict, held_out: Source) -> None:
    """Raises a ValueError unless latents are of the autoencoder that the training data is of."""
    wanted = (config.get("autoencoder") or {}).get("fingerprint")
    found = getattr(held_out, "autoencoder", {}).get("fingerprint")
    if wanted != found:
        raise ValueError(
            "The validation data must be of the same kind as the training data, and latents by the "
            "same autoencoder. "
            f"Received: validation_data={held_out.name!r} by {found}, data={config['data']!r} by "
            f"{wanted}"
        )


def _held_out(
    source: Source, num_images: int, model: DiffusionModel, training: Source
) -> tuple[np.ndarray, np.ndarray | None]:
    """Up to `num_images` images of a source at even distances, prepared as training does, and
    labels as training has them.
    """
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
                f"Received: validation_data={source.name!r}, with {', '.join(unknown)}"
            )
        labels = np.array([training.class_names.index(name) for name in source.class_names])[labels]
    return images, labels

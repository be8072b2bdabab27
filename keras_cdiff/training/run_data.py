"""What a run learns from: its data, and what that decides in its configuration."""

import dataclasses
import os

import numpy as np

from keras_cdiff.autoencoders import Autoencoder, open_autoencoder
from keras_cdiff.common.arrays import evenly_spaced
from keras_cdiff.common.errors import RetainedError
from keras_cdiff.data import (
    Source,
    TextEncoder,
    WithContext,
    caption_folder,
    embed_captions,
    make_dataset,
    open_source,
    open_text_encoder,
)
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.training.building import trains_on_latents

GRID_SAMPLES = 32  # of a run's grids
_PLACEHOLDER = ":PATH"  # in presets, of what only the user knows


@dataclasses.dataclass
class RunData:
    """What a run learns from.

    Attributes:
        config: the run's configuration, complete.
        source: the training data; with the contexts of its captions after `embed_captions`.
        text_encoder: what embeds captions, if the model is conditioned on them.
        autoencoder: what decodes samples that are latents, after `open_autoencoder`.
    """

    config: dict
    source: Source | WithContext
    text_encoder: TextEncoder | None = None
    autoencoder: Autoencoder | None = None

    def open_autoencoder(self) -> None:
        """Opens the autoencoder if the run shows or measures samples, or keeps a copy of it."""
        config = self.config
        described = config["autoencoder"] or {"name": ""}
        shown = config["training"]["sample_every"] or config["evaluation"]
        if shown or described["name"].startswith("kl:"):
            self.autoencoder = open_run_autoencoder(config)

    def embed_captions(self, workdir: str | os.PathLike) -> None:
        """Gives the source the contexts of its captions, if there is a text encoder; they are kept
        beside the data, or in the workdir where that cannot be.
        """
        if self.text_encoder is not None:
            folder = caption_folder(self.source.name, os.path.join(workdir, "text"))
            contexts = embed_captions(self.source, self.text_encoder, folder)
            self.source = WithContext(self.source, contexts)

    def batches(
        self, start_step: int, shard: tuple[int, int], source: "ReadErrors | None" = None
    ) -> object:
        """Returns the batches from a step on.

        Args:
            start_step: the step.
            shard: which part of each batch, as `make_dataset` takes it.
            source: what examples are read from, if not from the source itself.
        """
        backbone, training = self.config["model"]["backbone"], self.config["training"]
        return make_dataset(
            source or self.source,
            backbone["image_size"],
            training["batch_size"],
            seed=self.config["seed"],
            channels=backbone["channels"],
            horizontal_flip=training["horizontal_flip"],
            start_step=start_step,
            labels=backbone["num_classes"] > 0,
            shard=shard,
        )

    def grid_conditions(self) -> dict:
        """Returns what a run's grids show: the first captions of examples at even distances, with
        their labels if the model has classes too; nothing special without contexts.
        """
        source = self.source
        if not isinstance(source, WithContext):
            return {}
        examples = [source[n] for n in evenly_spaced(GRID_SAMPLES, len(source)).tolist()]
        conditions = {"context": np.stack([example["contexts"][0] for example in examples])}
        if self.config["model"]["backbone"]["num_classes"]:
            conditions["label"] = np.array([example["label"] for example in examples])
        return conditions

    def describe(self) -> dict:
        """Returns what must not change in the data while a run trains on it, as far as it is known
        without reading the images.
        """
        source = self.source
        description = {"images": len(source), "class_names": list(source.class_names)}
        if source.is_latent:
            description["latents"] = source.digest()
        if isinstance(source, WithContext):
            description["captions"] = source.embeddings.folder.name
        return description


def open_data(config: dict) -> RunData:
    """Opens the data of a run and writes into the configuration what it decides there: the number
    of classes, the autoencoder of latents, the text encoder and the width of contexts.

    Args:
        config: the resolved configuration, which is changed.

    Raises:
        ValueError: if the data or the text encoder cannot be opened, or does not fit the model.
    """
    data = config["data"]
    if data.endswith(_PLACEHOLDER):
        raise ValueError(
            f"The preset works on latents of your images: make them with apps/encode.py, and give "
            f"their folder as data, latents:FOLDER. Received: data={data!r}, "
            f"preset={config['preset']!r}"
        )
    _check_kind(config)
    source = open_source(data)
    if source.is_latent:
        images = {"images": source.source_name, "image_size": source.image_size}
        config["autoencoder"] = {**source.autoencoder, **images}
    encoder = open_run_text_encoder(config)
    config["model"]["backbone"]["num_classes"] = count_classes(config, source)
    if encoder is not None and not source.has_captions:
        raise ValueError(
            "A model conditioned on text needs captions: an array `captions` of an npz file, a "
            "metadata.csv of a folder, or a data set of TFDS that has some. "
            f"Received: data={data!r} without captions"
        )
    return RunData(config, source, encoder)


def open_run_text_encoder(config: dict) -> TextEncoder | None:
    """Returns the text encoder of a configuration, if it has one, and completes what it says of it.

    Raises:
        ValueError: if it cannot be opened, or is not the one that the model was trained with.
    """
    described = config.get("text_encoder")
    if described is None:
        return None
    if described["name"].endswith(_PLACEHOLDER):
        raise ValueError(
            "The preset is conditioned on text: say which encoder, by --text_encoder=minilm:FILE "
            f"or clip. Received: text_encoder={described['name']!r}, preset={config['preset']!r}"
        )
    encoder = open_text_encoder(described["name"], described.get("fingerprint"))
    backbone = config["model"]["backbone"]
    if backbone["context_width"] not in (None, encoder.width):
        raise ValueError(
            f"The model's contexts have rows of {backbone['context_width']} features: choose the "
            "text encoder that it was made for, or give yours by --text_encoder to train anew. "
            f"Received: text_encoder={described['name']!r} of width {encoder.width}"
        )
    config["text_encoder"] = encoder.describe()
    backbone["context_width"] = encoder.width
    return encoder


def open_run_autoencoder(config: dict, model: DiffusionModel | None = None) -> Autoencoder | None:
    """Returns the autoencoder of a run on latents; None for a run in pixels.

    Args:
        config: the run's configuration.
        model: its model, of whose channels the latents must be; None for the configuration's.

    Raises:
        ValueError: if it is not known, cannot be opened, or is not the one that the model was
            trained with.
    """
    channels = config["model"]["backbone"]["channels"]
    if model is not None:
        channels = model.image_shape[-1]
    described = config.get("autoencoder")
    if not (trains_on_latents(config) if model is None else model.is_latent):
        return None
    if described is None:
        raise ValueError(
            "Samples of this model are latents: say which autoencoder decodes them, by "
            "--autoencoder=stable_diffusion or kl:FOLDER. "
            f"Received: preset={config['preset']!r}, with {channels} channels"
        )
    autoencoder = open_autoencoder(described["name"], described["fingerprint"])
    if autoencoder.channels != channels:
        raise ValueError(
            f"The autoencoder must have latents of {channels} channels, as the model has. "
            f"Received: autoencoder={described['name']!r} of {autoencoder.channels} channels"
        )
    return autoencoder


def count_classes(config: dict, source: Source) -> int:
    """Returns the model's number of classes, which the data decides where the configuration does
    not.

    Raises:
        ValueError: if the data does not fit the configuration.
    """
    wanted = config["model"]["backbone"]["num_classes"]
    if wanted != 0 and not source.num_classes:
        raise ValueError(
            "A class-conditional model needs labelled data: label the images, or train without "
            f"classes, by num_classes=0. Received: data={config['data']!r} without labels"
        )
    if wanted is None:
        return source.num_classes
    if 0 < wanted < source.num_classes:
        raise ValueError(
            f"The data has {source.num_classes} classes, more than the model: leave the number of "
            f"classes to the data. Received: data={config['data']!r}, num_classes={wanted}"
        )
    return wanted


def _check_kind(config: dict) -> None:
    """Raises a ValueError if the network is for the other kind of data, latents or pixels."""
    channels = config["model"]["backbone"]["channels"]
    latents = config["data"].startswith("latents:")
    received = (
        f"Received: preset={config['preset']!r}, with {channels} channels, data={config['data']!r}"
    )
    if latents and not trains_on_latents(config):
        raise ValueError(
            "The data is latents, and this preset's network works on pixels: choose a preset of "
            f"latents. {received}"
        )
    if not latents and trains_on_latents(config):
        raise ValueError(
            "This preset's network works on latents, and the data is images: encode them with "
            "apps/encode.py, and give data=latents:FOLDER, or choose a preset in pixels. "
            f"{received}"
        )


class ReadErrors:
    """Reads the examples of a source, and keeps the error of one that cannot be read.

    Args:
        source: the source.

    Attributes:
        errors: keeps the ValueError that names the example.
    """

    def __init__(self, source: Source):
        self.source, self.name = source, source.name
        self.errors = RetainedError()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        with self.errors.retained():
            try:
                return self.source[index]
            except Exception as error:
                raise ValueError(
                    "An example of the data cannot be read: restore it, then repeat the command; "
                    f"the checkpoints are intact. Received: example {index} of {self.name!r} "
                    f"({type(error).__name__}: {error})"
                ) from error

    def __repr__(self) -> str:
        return repr(self.source)

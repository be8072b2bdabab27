"""One training run from a resolved configuration: data, model, curriculum, logs, weights."""

import copy
import math
import os

import keras

from keras_cdiff.data import Source, make_dataset, open_source
from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.tensorboard import TensorBoardWriter
from keras_cdiff.training.callbacks import RunLog, SampleGrid, StopAt
from keras_cdiff.training.configuration import (
    build_curriculum,
    build_model,
    build_optimizer,
    build_sampler,
    in_pixels,
)
from keras_cdiff.training.evaluation import evaluation_callbacks
from keras_cdiff.training.workdir import Workdir


def train(config: dict, workdir: str | os.PathLike) -> DiffusionModel:
    """Trains the model of `config` and keeps everything about the run in `workdir`.

    Nothing is written before data, model and curriculum have been checked.

    Args:
        config: what `resolve` returned.
        workdir: folder of the run; see `Workdir` for what lies where.

    Returns:
        The trained model.

    Raises:
        ValueError: if the data cannot be used, or the workdir belongs to another configuration or
            holds a finished run.
    """
    config = copy.deepcopy(config)
    backbone, training, sampling = (
        config["model"]["backbone"],
        config["training"],
        config["sampling"],
    )
    if not in_pixels(backbone["channels"]):
        raise ValueError(
            "Training starts from pixels, and this preset's network works on latents: choose a "
            "preset in pixels; encoding comes with latent support. "
            f"Received: preset={config['preset']!r}, with {backbone['channels']} channels"
        )
    source = open_source(config["data"])
    backbone["num_classes"] = _num_classes(config, source)
    folder = Workdir(workdir)
    folder.check(config)
    dataset = make_dataset(
        source,
        backbone["image_size"],
        training["batch_size"],
        seed=config["seed"],
        channels=backbone["channels"],
        horizontal_flip=training["horizontal_flip"],
        labels=backbone["num_classes"] > 0,
    )
    keras.utils.set_random_seed(config["seed"])
    model = build_model(config)
    model.compile(build_optimizer(config), jit_compile=training["jit_compile"])
    curriculum = build_curriculum(config)
    sampler = build_sampler(
        sampling["sampler"],
        sampling["num_steps"],
        backbone["channels"],
        **sampling.get("options", {}),
    )
    tensorboard = TensorBoardWriter(folder.tensorboard)
    evaluations = evaluation_callbacks(model, config, source, sampler, folder, tensorboard)

    folder.claim(config)
    steps, log_every = training["steps"], training["log_every"]
    print(
        f"{config['preset']}: {model.backbone.count_params():,} parameters, {len(source):,} images "
        f"from {source.name}, {steps} steps of {training['batch_size']} on "
        f"{keras.backend.backend()}, into {folder.path}",
        flush=True,
    )
    callbacks = [
        *([curriculum] if curriculum else []),
        StopAt(steps),
        RunLog(steps, folder.log_file, tensorboard),
        SampleGrid(
            folder.samples,
            training["sample_every"],
            sampler,
            guidance=sampling["guidance"],
            tensorboard=tensorboard,
        ),
        *evaluations,
    ]
    try:
        model.fit(
            dataset,
            epochs=math.ceil(steps / log_every),
            steps_per_epoch=log_every,
            callbacks=callbacks,
            shuffle=False,  # the data set has shuffled itself
            verbose=0,
        )
    finally:
        tensorboard.close()
    folder.save_weights(model)
    print(f"wrote {folder.weights}", flush=True)
    return model


def _num_classes(config: dict, source: Source) -> int:
    """The model's number of classes, which the data decides where the configuration does not."""
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

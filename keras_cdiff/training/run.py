"""One training run from a resolved configuration: data, model, curriculum, logs, weights."""

import math
import os

import keras

from keras_cdiff.data import make_dataset, open_source
from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.training.callbacks import RunLog, SampleGrid, StopAt
from keras_cdiff.training.configuration import (
    build_curriculum,
    build_model,
    build_optimizer,
    build_sampler,
)
from keras_cdiff.training.tensorboard import TensorBoardWriter
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
        ValueError: if the data cannot be used, or the workdir belongs to another configuration.
    """
    training, sampling = config["training"], config["sampling"]
    source = open_source(config["data"])
    backbone = config["model"]["backbone"]
    if backbone["num_classes"] is None:
        backbone["num_classes"] = source.num_classes
    if backbone["num_classes"] and backbone["num_classes"] < source.num_classes:
        raise ValueError(
            f"The data has {source.num_classes} classes, the model fewer: leave the number of "
            "classes "
            f"to the data. Received: num_classes={backbone['num_classes']}"
        )
    if backbone["num_classes"] and not source.num_classes:
        raise ValueError(
            "A class-conditional model needs labelled data: use labelled data or num_classes=0. "
            f"Received: data={config['data']!r}, num_classes={backbone['num_classes']}"
        )
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
    model.compile(build_optimizer(config))
    curriculum = build_curriculum(config, model)
    sampler = build_sampler(sampling["sampler"], sampling["num_steps"])

    folder = Workdir(workdir)
    folder.claim(config)
    tensorboard = TensorBoardWriter(folder.tensorboard)
    steps, log_every = training["steps"], min(training["log_every"], training["steps"])
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
    ]
    model.fit(
        dataset,
        epochs=math.ceil(steps / log_every),
        steps_per_epoch=log_every,
        callbacks=callbacks,
        shuffle=False,  # the data set has shuffled itself
        verbose=0,
    )
    folder.save_weights(model)
    tensorboard.close()
    return model

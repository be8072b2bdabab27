"""Samples from a training run, or from a weights file and its preset, written to disk."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_cdiff.data import save_image_grid, to_uint8, write_batch_file
from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, sample
from keras_cdiff.training.building import build_model, build_sampler, in_pixels
from keras_cdiff.training.callbacks import class_labels, display_scale
from keras_cdiff.training.configuration import resolve
from keras_cdiff.training.workdir import Workdir, load_network


def load_run(workdir: str | os.PathLike) -> tuple[DiffusionModel, dict]:
    """Returns the trained model of a workdir, and its configuration.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    folder = Workdir(workdir)
    config = folder.config()
    model = build_model(config)
    folder.load_weights(model)
    return model, config


def load_weights(
    weights: str | os.PathLike, preset: str, **changes: object
) -> tuple[DiffusionModel, dict]:
    """Returns a preset's model with one weights file as its weights and their average.

    Args:
        weights: a file that `Workdir.save_weights` wrote.
        preset: the name of the preset.
        **changes: arguments of `resolve`, such as image_size and num_classes.

    Raises:
        ValueError: if the file is missing or holds the weights of another network.
    """
    config = resolve(preset, **changes)
    model = build_model(config)
    for network in (model.backbone, model.ema_backbone):
        if network is not None:
            load_network(network, weights)
    return model, config


def generate(
    model: DiffusionModel,
    config: dict,
    output: str | os.PathLike,
    *,
    num_samples: int = 64,
    seed: int = 0,
    sampler: str | None = None,
    num_steps: int | None = None,
    label: int | Sequence[int] | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    use_ema: bool = True,
    batch_size: int = 64,
) -> np.ndarray:
    """Draws samples and writes OUTPUT/samples.png, a grid, and OUTPUT/samples.npz, the images.

    The .npz holds uint8 (N, H, W, C) under the name arr_0, as evaluators of generated images read
    it.

    Args:
        model: the trained model.
        config: its configuration, whose sampler, steps and guidance are the defaults.
        output: the folder, made if missing.
        num_samples: N.
        seed: sample i has the seed `seed` + i.
        sampler: a name in `building.SAMPLERS`; None for the configuration's, with its options.
        num_steps: steps of the sampler.
        label: class of every sample; None shows all classes in turn.
        guidance: scale of the guidance.
        guidance_interval: levels [low, high) at which there is guidance; None for all.
        use_ema: whether the averaged weights are used.
        batch_size: samples drawn at once.

    Returns:
        The uint8 images.

    Raises:
        ValueError: if an argument is out of its range or does not fit the model, or the model is
            one of latents.
    """
    channels, folder = model.image_shape[-1], Path(output)
    if not in_pixels(channels):
        raise ValueError(
            "Samples of this model are latents, and decoding them into images comes with latent "
            "support: keras_cdiff.sample returns them as they are. "
            f"Received: preset={config['preset']!r}, with {channels} channels"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output must be a folder. Received: output={str(output)!r}")
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
    images = to_uint8(
        sample(
            model,
            num_samples,
            **options,
            seed=seed,
            use_ema=use_ema,
            batch_size=batch_size,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_batch_file(folder / "samples.npz", images)
    save_image_grid(images, folder / "samples.png", scale=display_scale(images))
    return images


def sampling_settings(
    model: DiffusionModel,
    config: dict,
    num_samples: int,
    *,
    sampler: str | None = None,
    num_steps: int | None = None,
    label: int | Sequence[int] | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
) -> dict:
    """Returns how samples of a run are drawn: sampler, label and guidance, for `sample`.

    The arguments are those of `generate`; what is None is taken from the configuration.

    Raises:
        ValueError: if there is no such sampler, or an interval limits no guidance.
    """
    settings, options = config["sampling"], {}
    if sampler in (None, settings["sampler"]):
        num_steps = settings["num_steps"] if num_steps is None else num_steps
        options = settings.get("options", {})
    if label is None:
        label = class_labels(model.num_classes, num_samples)
    if guidance is None:
        guidance = settings["guidance"] if label is not None else 1.0
    if guidance_interval is not None and guidance == 1.0:
        raise ValueError(
            "`guidance_interval` limits a guidance, and there is none: give a guidance other "
            "than 1, or leave the interval out. "
            f"Received: guidance=1, guidance_interval={guidance_interval}"
        )
    channels = model.image_shape[-1]
    return {
        "sampler": build_sampler(sampler or settings["sampler"], num_steps, channels, **options),
        "label": label,
        "guidance": Guidance(guidance, interval=guidance_interval),
    }

"""Samples of a run: grids while it trains, and images of the model that it has trained."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from keras_cdiff.autoencoders import Autoencoder, open_autoencoder
from keras_cdiff.common.arrays import fingerprint
from keras_cdiff.common.callbacks import PeriodicCallback
from keras_cdiff.common.tensorboard import TensorBoardWriter
from keras_cdiff.data import TextContexts, image_grid, save_image_grid, to_uint8, write_batch_file
from keras_cdiff.distribution import share, sharing
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, Sampler, sample
from keras_cdiff.training.building import build_model, build_sampler
from keras_cdiff.training.checkpoint import CheckpointFolder, read_checkpoint
from keras_cdiff.training.configuration import choose, resolve, with_settings
from keras_cdiff.training.model_state import restore_networks
from keras_cdiff.training.run_data import (
    GRID_SAMPLES,
    open_run_autoencoder,
    open_run_text_encoder,
)
from keras_cdiff.training.settings import Sampling
from keras_cdiff.training.workdir import Workdir, load_network


class SampleGrid(PeriodicCallback):
    """Draws the same samples from the averaged weights now and then, as a grid on disk.

    Args:
        folder: where step_NNNNNN.png is written, or None.
        every: training steps between two grids, rounded up to the end of an epoch; the last step of
            training always has one.
        sampler: how samples are drawn.
        num_samples: how many; a class-conditional model shows its classes in turn.
        guidance: scale of the guidance for conditional models.
        tensorboard: a `TensorBoardWriter`, or None.
        label: (num_samples,) classes instead.
        context: (num_samples, L, D), the contexts of the samples, or None.
        decode: makes images (N, H, W, C) in [-1, 1] of samples that are latents; without it latents
            show their first three channels.
    """

    def __init__(
        self,
        folder: str | Path | None,
        every: int,
        sampler: Sampler | None = None,
        num_samples: int = GRID_SAMPLES,
        guidance: float = 1.0,
        tensorboard: TensorBoardWriter | None = None,
        label: np.ndarray | None = None,
        context: np.ndarray | None = None,
        decode: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        super().__init__(every)
        self.label, self.context, self.decode = label, context, decode
        self.folder = None if folder is None else Path(folder)
        self.sampler = sampler
        self.num_samples = num_samples
        self.guidance = guidance
        self.tensorboard = tensorboard

    def act(self, step: int, logs: dict | None) -> None:
        label = self.label
        if label is None and self.context is None:
            label = class_labels(self.model.num_classes, self.num_samples)
        images = draw_samples(
            self.model,
            self.num_samples,
            self.sampler,
            label=label,
            context=self.context,
            guidance=1.0 if label is None and self.context is None else self.guidance,
            progress=False,
        )
        # A run that diverges is for its log to tell.
        images = np.nan_to_num(images, posinf=1.0, neginf=-1.0)
        if self.decode is not None:
            images = self.decode(images)
        shown = images[..., :3] if images.shape[-1] >= 3 else images[..., :1]
        images = to_uint8(np.nan_to_num(shown, posinf=1.0, neginf=-1.0))
        layout = {"columns": 8, "scale": display_scale(images)}
        if self.folder is not None:
            save_image_grid(images, self.folder / f"step_{step:06d}.png", **layout)
        if self.tensorboard is not None:
            self.tensorboard.image(step, "samples", image_grid(images, **layout))


def load(workdir: str | os.PathLike, step: int | None = None) -> DiffusionModel:
    """Returns the trained model of a run, finished or not.

    Args:
        workdir: the run's folder, apps/train.py's --workdir.
        step: training step of a checkpoint; None for the last.

    Raises:
        ValueError: if the folder holds no run, or nothing of that step.

    Example:

    ```python
    samples = keras_cdiff.sample(keras_cdiff.load("runs/emoji"), 16)
    ```
    """
    return load_run(workdir, step=step)[0]


def load_run(
    workdir: str | os.PathLike,
    text_encoder: str | None = None,
    autoencoder: str | None = None,
    step: int | None = None,
) -> tuple[DiffusionModel, dict]:
    """Returns the trained model of a workdir, and its configuration.

    Args:
        workdir: the run's folder. Of a run that is not finished the newest checkpoint is loaded.
        text_encoder: where the run's text encoder is, as `open_text_encoder` takes it; None where
            it was in training.
        autoencoder: where its autoencoder is, as `open_autoencoder` takes it; likewise.
        step: training step of a checkpoint; None for the last.

    Raises:
        ValueError: if the folder holds no run or nothing of that step, or one without text or
            latents that is given their encoder.
    """
    if (Path(workdir) / "saved_model.pb").is_file():
        raise ValueError(
            "This folder holds an exported sampler, which TensorFlow alone loads: "
            "tf.saved_model.load(path).signatures. Give the --workdir of a training run. "
            f"Received: workdir={str(workdir)!r}"
        )
    folder = Workdir(workdir)
    config = folder.config()
    if folder.autoencoder.is_dir():
        config["autoencoder"]["name"] = f"kl:{folder.autoencoder}"
    for kind, name in (("text_encoder", text_encoder), ("autoencoder", autoencoder)):
        if name is None:
            continue
        if config.get(kind) is None:
            what = "is not conditioned on text" if kind == "text_encoder" else "is not of latents"
            raise ValueError(
                f"This run {what}: leave the {kind.replace('_', ' ')} out. "
                f"Received: {kind}={name!r}, workdir={str(workdir)!r}"
            )
        config[kind]["name"] = name  # the fingerprint tells whether it is the same one
    model = build_model(config)
    _load(model, folder, step)
    return model, config


def _load(model: DiffusionModel, folder: Workdir, step: int | None) -> None:
    """Loads the weights of a finished run, or a checkpoint's."""
    finished, checkpoints = folder.weights_step(), CheckpointFolder(folder.checkpoints)
    if step is None and finished is None and (newest := checkpoints.latest()):
        restore_networks(model, newest[1])
    elif step in (None, finished):
        folder.load_weights(model)
    elif step in checkpoints.steps():
        restore_networks(model, read_checkpoint(checkpoints.file(step))[0])
    else:
        there = sorted({*checkpoints.steps(), finished} - {None})
        raise ValueError(
            f"The run keeps the steps {', '.join(map(str, there)) or 'none'}: give one of them, or "
            f"leave it out for the last. Received: step={step!r}, workdir={str(folder.path)!r}"
        )


def load_weights(
    weights: str | os.PathLike, preset: str, autoencoder: str | None = None, **changes: object
) -> tuple[DiffusionModel, dict]:
    """Returns a preset's model with one weights file as its weights and their average.

    Args:
        weights: a file that `Workdir.save_weights` wrote.
        preset: the name of the preset.
        autoencoder: what decodes the samples of a model of latents, as `open_autoencoder` takes it.
        **changes: arguments of `resolve`, such as image_size, num_classes and text_encoder.

    Raises:
        ValueError: if the file is missing or holds the weights of another network; or if it lies
            where a run wrote it, and was trained with another autoencoder or text encoder.
    """
    config = resolve(preset, **changes)
    if autoencoder is not None:
        config["autoencoder"] = open_autoencoder(autoencoder).describe()
    _adopt_fingerprints(weights, config)
    if config["model"]["backbone"].get("context_width", 0) is None:
        open_run_text_encoder(config)  # which knows the width
    model = build_model(config)
    for network in (model.backbone, model.ema_backbone):
        if network is not None:
            load_network(network, weights)
    return model, config


@with_settings(Sampling)
def generate(
    model: DiffusionModel,
    config: dict,
    output: str | os.PathLike,
    *,
    num_samples: int = 64,
    label: int | Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    **changes: object,
) -> np.ndarray:
    """Draws samples and writes OUTPUT/samples.png, a grid, and OUTPUT/samples.npz, the images.

    Samples of a model of latents are decoded. The .npz holds uint8 (N, H, W, C) under the name
    arr_0, as evaluators of generated images read it. Under `distribution.shared_by` the processes
    share the samples, and the first writes them.

    Args:
        model: the trained model.
        config: its configuration, whose sampler, steps and guidance are the defaults.
        output: the folder, made if missing.
        num_samples: N.
        label: class of every sample; None shows all classes in turn, or the null label where there
            are prompts.
        prompts: texts that the samples show in turn, for a model conditioned on text, no more than
            samples; None for the null text.
        **changes: settings of sampling:{settings}

    Returns:
        The uint8 images.

    Raises:
        ValueError: if an argument is out of its range or does not fit the model, or the text
            encoder or the autoencoder cannot be opened.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output must be a folder. Received: output={str(output)!r}")
    autoencoder = open_run_autoencoder(config, model)
    context = None
    if prompts is not None:
        if len(prompts) > num_samples:
            raise ValueError(
                "Each prompt needs a sample: draw more samples, or give fewer prompts. "
                f"Received: num_samples={num_samples}, with {len(prompts)} prompts"
            )
        context = prompt_contexts(config, prompts)
        context = context[np.arange(num_samples) % len(context)]
    chosen = choose(Sampling, changes)
    images = draw_samples(
        model,
        num_samples,
        **sampling_settings(model, config, num_samples, label=label, context=context, **changes),
        seed=chosen.seed,
        use_ema=chosen.use_ema,
        batch_size=chosen.batch_size,
    )
    images = to_uint8(images) if autoencoder is None else decode(autoencoder, images)
    if sharing().first:
        folder.mkdir(parents=True, exist_ok=True)
        write_batch_file(folder / "samples.npz", images)
        save_image_grid(images, folder / "samples.png", scale=display_scale(images))
    return images


def decode(autoencoder: Autoencoder, latents: np.ndarray) -> np.ndarray:
    """Returns the uint8 images of latents; the processes of `distribution.shared_by` share them."""
    parts = np.array_split(latents, min(sharing().count, len(latents)))
    images = share(parts, lambda part: to_uint8(autoencoder.decode(part)))
    return np.concatenate(list(images))


def draw_samples(
    model: DiffusionModel,
    num_samples: int,
    sampler: Sampler | None = None,
    *,
    seed: int = 0,
    label: int | Sequence[int] | None = None,
    context: np.ndarray | None = None,
    batch_size: int = 64,
    progress: bool = True,
    **options: object,
) -> np.ndarray:
    """Returns what `keras_cdiff.sample` returns; the processes of `distribution.shared_by` draw
    batches in turn, smaller ones if else a process had none to draw.
    """
    processes = sharing()
    if processes.count == 1:
        drawn = {"seed": seed, "label": label, "context": context, **options}
        return sample(
            model, num_samples, sampler, **drawn, batch_size=batch_size, progress=progress
        )
    size = min(batch_size, -(-num_samples // processes.count))
    each = {}
    if label is not None:
        each["label"] = np.broadcast_to(label, num_samples)
    if context is not None:
        context = np.asarray(context)
        each["context"] = np.broadcast_to(context, (num_samples, *context.shape[-2:]))
    request = (num_samples, size, seed, sampler and (type(sampler).__name__, sampler.get_config()))
    processes.check_same("samples to draw", (*request, fingerprint("", **each)))

    def draw(rows: np.ndarray) -> np.ndarray:
        return sample(
            model,
            size,
            sampler,
            seed=[seed + int(row) for row in rows],
            **{name: values[rows] for name, values in each.items()},
            **options,
            batch_size=size,
            progress=progress and processes.first,
        )

    # The last batch repeats the last sample, so that nothing compiles again.
    starts = range(0, num_samples, size)
    batches = [np.minimum(np.arange(i, i + size), num_samples - 1) for i in starts]
    return np.concatenate(list(share(batches, draw)))[:num_samples]


def prompt_contexts(config: dict, prompts: Sequence[str]) -> np.ndarray:
    """Returns the contexts of prompts, (N, L, D), by the text encoder that a run was trained with.

    Raises:
        ValueError: if the run has none, it cannot be opened, or there is no prompt.
    """
    encoder = open_run_text_encoder(config)
    if encoder is None:
        raise ValueError(
            "This model is not conditioned on text: leave prompts out, or train one with "
            f"--text_encoder. Received: prompts={list(prompts)}, preset={config['preset']!r}"
        )
    if not prompts:
        raise ValueError('Give at least one prompt; "" is the null text. Received: prompts=[]')
    return encoder.encode(list(prompts))


@with_settings(Sampling)
def sampling_settings(
    model: DiffusionModel,
    config: dict,
    num_samples: int,
    *,
    label: int | Sequence[int] | None = None,
    context: np.ndarray | TextContexts | None = None,
    **changes: object,
) -> dict:
    """Returns how samples of a run are drawn: sampler, label, context and guidance, for `sample`.

    Guidance is the configuration's where there is a condition to strengthen, else none. The
    arguments are those of `generate`; what is None is taken from the configuration.

    Raises:
        ValueError: if there is no such sampler, or an interval limits no guidance.
    """
    preset, options, chosen = config["sampling"], {}, choose(Sampling, changes)
    num_steps, guidance = chosen.num_steps, chosen.guidance
    if chosen.sampler in (None, preset["sampler"]):
        num_steps = preset["num_steps"] if num_steps is None else num_steps
        options = preset.get("options", {})
    if label is None and context is None:
        label = class_labels(model.num_classes, num_samples)
    if guidance is None:
        guided = label is not None or context is not None
        guidance = preset["guidance"] if guided else 1.0
    if chosen.guidance_interval is not None and guidance == 1.0:
        raise ValueError(
            "`guidance_interval` limits a guidance, and there is none: give a guidance other "
            "than 1, or leave the interval out. "
            f"Received: guidance=1, guidance_interval={chosen.guidance_interval}"
        )
    name = chosen.sampler or preset["sampler"]
    return {
        "sampler": build_sampler(name, num_steps, model.is_latent, **options),
        "label": label,
        "context": context,
        "guidance": Guidance(guidance, interval=chosen.guidance_interval),
    }


def _adopt_fingerprints(weights: str | os.PathLike, config: dict) -> None:
    """Writes into a configuration which encoders a weights file was trained with, if it lies where
    a run wrote it; a file elsewhere says nothing of them.

    Args:
        weights: the file.
        config: the configuration, with "autoencoder" and "text_encoder".

    Raises:
        ValueError: if the configuration has another encoder.
    """
    file = Path(weights).with_name("step.json")
    trained = json.loads(file.read_text()).get("fingerprints", {}) if file.is_file() else {}
    for kind, expected in trained.items():
        found = config.get(kind)
        if found is not None and found.setdefault("fingerprint", expected) != expected:
            raise ValueError(
                f"The weights were trained with another {kind.replace('_', ' ')}, of the "
                f"fingerprint {expected}: give that one. "
                f"Received: weights={str(weights)!r}, {kind} of {found['fingerprint']}"
            )


def display_scale(images: np.ndarray) -> int:
    """Returns the factor that makes small images (N, H, W, C) about 64 pixels high on screen."""
    return max(1, 64 // images.shape[1])


def class_labels(num_classes: int, num_samples: int) -> list[int] | None:
    """Returns each class in turn, as often as there are samples; None without classes."""
    return [i % num_classes for i in range(num_samples)] if num_classes else None

"""Trains one run of the table, and keeps the samples of each point of its curve.

    KERAS_BACKEND=jax python experiments/curriculum/one_run.py --output=evidence \
        --run=emoji_edm/curriculum/lr0.004/seed0

run.py starts it. A repeated command goes on from the run's newest checkpoint.
"""

import dataclasses
import sys
from pathlib import Path

import keras
import numpy as np
from data_sets import path_of
from settings import METHODS, SIZES, Run, Setting, find_run, run_parser, workdir_of

from keras_cdiff import training
from keras_cdiff.common.callbacks import PeriodicCallback
from keras_cdiff.common.files import FolderLock
from keras_cdiff.curriculum import Clusters
from keras_cdiff.data import LatentSource, open_source, write_batch_file
from keras_cdiff.evaluation import GeneratedImages, proportional_labels
from keras_cdiff.study import run_study
from keras_cdiff.training.building import build_curriculum, make_clusters

# Held-out images of the validation loss.
VALIDATION_IMAGES = 128
# Noise levels are reported in as many clusters, whatever the curriculum's are.
REPORTED_CLUSTERS = 5
SAMPLES_AT_ONCE = 128
LOG_EVERY, CHECKPOINT_EVERY = 100, 1000


class Samples:
    """Draws the samples by which a run is measured: the same seeds and labels in every run, labels
    in the proportions of the training data, the preset's sampler and guidance.

    They are kept as images, so that another extractor needs no training. The
    autoencoder of latents is opened at once, so that what it lacks is said before training.
    """

    def __init__(self, config: dict, workdir: Path):
        source = open_source(config["data"])
        if isinstance(source, LatentSource):
            config = {**config, "autoencoder": source.autoencoder}
        self.config, self.folder, self.labels = config, workdir / "images", source.labels()
        self.autoencoder = training.open_run_autoencoder(config)

    def path(self, name: str) -> Path:
        """Returns where the samples of a name lie."""
        return self.folder / f"{name}.npz"

    def write(self, model: object, name: str, num_samples: int) -> None:
        """Draws samples of a model and writes them."""
        label = None
        if model.num_classes:
            label = proportional_labels(self.labels, num_samples)
        generated = GeneratedImages(
            model,
            num_samples,
            **training.sampling_settings(model, self.config, num_samples, label=label),
            batch_size=SAMPLES_AT_ONCE,
            autoencoder=self.autoencoder,
        )
        blocks = generated.batches(0, SAMPLES_AT_ONCE)
        write_batch_file(self.path(name), blocks, num_images=num_samples)


class KeepSamples(PeriodicCallback):
    """Writes samples now and then while a model trains."""

    def __init__(self, samples: Samples, every: int, num_samples: int):
        super().__init__(every)
        self.samples, self.num_samples = samples, num_samples

    def act(self, step: int, logs: dict | None) -> None:
        self.samples.write(self.model, f"{step:08d}", self.num_samples)


class UnorderedStages(keras.callbacks.Callback):
    """Trains the steps of stages of fixed length in blocks of random order, then the whole range.

    Each range of noise is trained for as many steps as under `FixedPacing(stage_steps)`, and the
    last stage, the whole range, for the same steps: only the order within the first ones differs.
    It depends on the seed alone, so that a resumed run goes on exactly. `steps_per_execution` must
    be 1.
    """

    def __init__(self, clusters: Clusters, stage_steps: int, seed: int = 0, block: int = 10):
        super().__init__()
        if block < 1 or stage_steps % block:
            raise ValueError(
                "`block` must be at least 1 and divide `stage_steps`. Received: "
                f"block={block}, stage_steps={stage_steps}"
            )
        self.clusters, self.block = clusters, block
        stages = np.repeat(np.arange(1, clusters.num_clusters), stage_steps // block)
        self.stages = np.random.default_rng(seed).permutation(stages)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._iteration = int(keras.ops.convert_to_numpy(self.model.iteration))
        self._enter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._iteration += 1
        if self._iteration % self.block == 0 and self._iteration // self.block <= len(self.stages):
            self._enter()

    def _enter(self) -> None:
        number, interval = self._iteration // self.block, self.clusters.full_interval
        if number < len(self.stages):
            interval = self.clusters.stage_interval(int(self.stages[number]))
        inside = np.clip(interval, *self.model.objective.support)
        self.model.noise_interval.assign(inside.astype("float32"))


def configuration(
    run: Run,
    size: str,
    output: Path,
    data: str | None = None,
    held_out: str | None = None,
    clusters: Clusters | str | None = None,
) -> dict:
    """Returns the configuration of a run: its method in its setting. No data is opened."""
    setting, method = SIZES[size][run.setting], METHODS[run.method]
    options = dict(method.options)
    if method.measured_clusters:
        if clusters is None:
            raise ValueError(
                "This method needs clusters that a study has measured, see `measured_clusters`. "
                f"Received: run={run.name!r}, clusters=None"
            )
        options["clusters"] = clusters
    return _resolve(setting, run, output, data, held_out, options)


def measured_clusters(run: Run, size: str, output: Path) -> Clusters:
    """Returns clusters of equal difficulty, after a study of a run's setting if there is none."""
    setting = SIZES[size][run.setting]
    folder = output / size / "studies" / run.setting
    file = folder / "clusters_convergence.json"
    with FolderLock(
        folder.with_name(f"{run.setting}_queue"), None
    ):  # runs of other seeds wait for it
        if not file.is_file():
            num_experts, steps = setting.study
            config = _resolve(setting, run, output, None, None, {"clusters": "quantile"})
            run_study(
                folder,
                {**config, "seed": 0},
                num_experts=num_experts,
                steps=steps,
                extractor="none",
                num_draws=32,
            )
    return Clusters.load(file)


def _resolve(
    setting: Setting,
    run: Run,
    output: Path,
    data: str | None,
    held_out: str | None,
    options: dict,
) -> dict:
    if setting.data is not None:
        data, held_out = (
            f"npz:{path_of(output / 'data', setting.data, part)}" for part in ("train", "held_out")
        )
    every = setting.preset["training"]["steps"] // setting.points
    config = training.resolve(
        setting.preset,
        data=data,
        num_classes=setting.preset["model"]["backbone"]["num_classes"],
        learning_rate=run.learning_rate,
        seed=run.seed,
        log_every=min(LOG_EVERY, every),
        checkpoint_every=min(CHECKPOINT_EVERY, every),
        keep_last=2,
        validate_every=every if held_out else None,
        validation_data=held_out,
        validation_images=VALIDATION_IMAGES,
        **options,
    )
    if held_out:
        reported = {"clusters": "quantile", "num_clusters": REPORTED_CLUSTERS}
        clusters = make_clusters(config["model"], reported)
        config["validation"]["edges"] = clusters.get_config()["edges"]
    config["training"]["sample_every"] = None
    return config


def train(
    run: Run,
    size: str,
    output: Path,
    data: str | None = None,
    held_out: str | None = None,
) -> None:
    """Trains a run to its end and draws its samples, as far as that has not been done."""
    setting, workdir = SIZES[size][run.setting], workdir_of(run, size, output)
    measured = METHODS[run.method].measured_clusters
    clusters = measured_clusters(run, size, output) if measured else None
    config = configuration(run, size, output, data, held_out, clusters)
    samples, steps = Samples(config, workdir), config["training"]["steps"]
    if training.Workdir(workdir).weights_step() != steps:
        callbacks = [KeepSamples(samples, steps // setting.points, setting.curve_samples)]
        if METHODS[run.method].unordered is not None:
            ordered = dataclasses.replace(run, method=METHODS[run.method].unordered)
            staged = build_curriculum(configuration(ordered, size, output, data, held_out))
            callbacks.append(UnorderedStages(staged.clusters, staged.pacing.steps, run.seed))
        model = training.train(config, workdir, callbacks)
    elif samples.path("final").is_file():
        return
    else:
        model, _ = training.load_run(workdir)  # it was interrupted after the last step
    samples.write(model, "final", setting.final_samples)


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("--data", help="training images, where the setting names none")
    parser.add_argument("--held_out", help="images held out, likewise")
    options = parser.parse_args()
    run = find_run(options.size, options.run)
    try:
        train(run, options.size, options.output, options.data, options.held_out)
    except training.Interrupted as interrupted:
        sys.exit(interrupted.exit_code)


if __name__ == "__main__":
    main()

"""How fast each interval of noise levels is learned, by an expert that learns nothing else."""

import contextlib
import copy
import functools
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import append_record, strict_json, write_whole
from keras_cdiff.curriculum import Clusters
from keras_cdiff.data import read_images, to_uint8
from keras_cdiff.evaluation import (
    EvaluationCallback,
    Evaluator,
    ValidationLoss,
    ValidationLossCallback,
)
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Sampler
from keras_cdiff.schedules import EDM
from keras_cdiff.study.curves import ExpertCurves, read_curves, read_records
from keras_cdiff.study.denoised_images import DenoisedImages
from keras_cdiff.training import Workdir, load_run, train
from keras_cdiff.training.building import build_run_sampler, make_clusters
from keras_cdiff.training.configuration import differences
from keras_cdiff.training.run_data import open_data

REFERENCE = "reference"


class _FromTheStart:
    """Measures before training, too."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        if self._step() == 0:
            self.act(0, None)


class _LossCurve(_FromTheStart, ValidationLossCallback):
    """The loss of an expert."""


class _QualityCurve(_FromTheStart, EvaluationCallback):
    """The quality of an expert."""


class ConvergenceStudy:
    """Trains one expert for each interval of noise levels, and measures how it converges.

    Expert i, FOLDER/experts/i, is a training run with a `noise_interval` that never changes, of the
    same network, data, batches and seed as all others; its learning rate stays where its warm-up
    ends. The loss is measured before training and every some steps, on the same images and noises.
    The quality is the Frechet distance between real images and `DenoisedImages` of them. Experts
    can be trained in several processes at once, and one that was interrupted goes on.

    Args:
        folder: of the study.
        config: what `keras_cdiff.training.resolve` returned; its steps are those of the reference,
            which trains under no curriculum.
        steps: training steps of each expert.
        num_experts: N.
        clusters: their intervals; None for uniform ones of timesteps and of flows, and for
            quantiles of the objective where the schedule is EDM's.
        reference: workdir of a finished run, to finish what the experts began; None for a run of
            the study's own, FOLDER/reference.
        evaluator: compares images for the quality; None to measure the loss alone, which needs no
            reference.
        num_images: images by which the quality is measured, at even distances in the data.
        num_steps: steps of the configuration's sampler from most noise down; None for its own.
        quality_every: training steps between two measurements of the quality; None for steps / 4;
            rounded up to a multiple of `loss_every`.
        loss_every: training steps between two measurements of the loss.
        loss_images: images by which it is measured.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: dict,
        steps: int,
        num_experts: int = 10,
        clusters: Clusters | None = None,
        reference: str | os.PathLike | None = None,
        evaluator: Evaluator | None = None,
        num_images: int = 1000,
        num_steps: int | None = None,
        quality_every: int | None = None,
        loss_every: int = 20,
        loss_images: int = 128,
    ):
        self.folder, self.config = Path(folder), copy.deepcopy(config)
        self.config["curriculum"] = None
        data = open_data(self.config)
        self.source = data.source
        if data.text_encoder is not None:
            raise ValueError(
                "Experts are measured on images with classes or without, and not with text: choose "
                f"another preset. Received: text_encoder={data.text_encoder.name!r}"
            )
        if evaluator is not None and self.config["autoencoder"] is not None:
            raise ValueError(
                "The quality of images cannot be measured on latents: leave the evaluator out, and "
                f"the loss alone is measured. Received: data={config['data']!r} with an evaluator"
            )
        for name, value, least in (
            ("steps", steps, 1),
            ("num_images", num_images, 2),
            ("loss_every", loss_every, 1),
            ("loss_images", loss_images, 2),
        ):
            check_integer(name, value, least)
        self.steps, self.loss_every = steps, loss_every
        self.quality_every = max(1, steps // 4) if quality_every is None else quality_every
        self.num_images = min(num_images, len(self.source))
        self.loss_images = min(loss_images, len(self.source))
        warmup = self.config["training"]["warmup_steps"]
        if warmup >= steps:
            raise ValueError(
                f"Experts must be trained beyond the warm-up of the learning rate, of {warmup} "
                f"steps: give more steps. Received: steps={steps}"
            )
        self.num_steps = num_steps
        self.evaluator = evaluator
        self.clusters = clusters or default_intervals(self.config, num_experts)
        self.num_experts = self.clusters.num_clusters
        self.own_reference = reference is None
        self.reference_folder = Path(reference or self.folder / REFERENCE)

    def missing(self) -> list[int]:
        """Returns the numbers of the experts that have not been trained to their end."""
        return [i for i in range(1, self.num_experts + 1) if not self._finished(i)]

    def train_reference(self) -> None:
        """Trains the study's own reference model, unless it is there."""
        if not self.own_reference:
            return
        workdir = Workdir(self.reference_folder)
        if workdir.config_file.exists():
            self._check_same(workdir, self.config)
        if workdir.weights_step() is None:
            with self._timed(REFERENCE):
                train(self.config, workdir.path)

    def train_expert(self, number: int) -> None:
        """Trains and measures an expert, unless that is done.

        Args:
            number: 1..N, by ascending noise.

        Raises:
            ValueError: if there is no such expert, the folder holds another study, the reference
                does not fit, or another process is training this expert.
        """
        if number not in range(1, self.num_experts + 1):
            raise ValueError(
                f"Experts are numbered 1..{self.num_experts}. Received: number={number!r}"
            )
        config, workdir = self.expert_config(number), Workdir(self._workdir(number))
        if self._finished(number):
            return
        interval = self._interval(number)
        with self._timed(f"expert {number}"):
            images, labels = self._images(self.loss_images)
            callbacks = [
                _LossCurve(
                    ValidationLoss(images, labels, Clusters(config["curriculum"]["edges"])),
                    self.loss_every,
                    use_ema=False,
                    path=workdir.validation_file,
                    verbose=0,
                )
            ]
            if self.evaluator is not None:
                reference, judged = self._reference, self._images(self.num_images)

                def denoised(
                    expert: DiffusionModel, _: int, sampler: Sampler, use_ema: bool, **__: object
                ) -> DenoisedImages:
                    arguments = expert, reference, *judged, interval, sampler, use_ema
                    return DenoisedImages(*arguments, name=f"expert {number}")

                callbacks.append(
                    _QualityCurve(
                        self.evaluator,
                        to_uint8(judged[0]),
                        self.quality_every,
                        self.num_images,
                        sampler=self._sampler(),
                        use_ema=False,
                        generate=denoised,
                        path=workdir.evaluation_file,
                    )
                )
            if workdir.weights_step() is None:
                train(config, workdir.path, callbacks)
            result = {"floor": None}
            if self.evaluator is not None:
                stand_in = denoised(reference, self.num_images, self._sampler(), use_ema=True)
                with warnings.catch_warnings():  # a small sample's bias, the same for all experts
                    warnings.filterwarnings("ignore", "the Frechet distance of", UserWarning)
                    floor = self.evaluator.evaluate(stand_in, to_uint8(judged[0]))
                result["floor"] = float(floor.metrics["frechet_distance"])
            text = json.dumps(strict_json(result)) + "\n"
            write_whole(self._result(number), lambda path: path.write_text(text))

    def curves(self) -> list[ExpertCurves]:
        """Returns what was measured of all experts, by ascending noise, once they are trained."""
        if self.missing():
            raise ValueError(
                "All experts must be trained before they are compared. "
                f"Received: experts {self.missing()} missing in {str(self.folder)!r}"
            )
        seconds = self.seconds()
        return [
            read_curves(
                Workdir(self._workdir(number)),
                number,
                self._interval(number),
                json.loads(self._result(number).read_text())["floor"],
                seconds.get(f"expert {number}", 0.0),
            )
            for number in range(1, self.num_experts + 1)
        ]

    def seconds(self) -> dict[str, float]:
        """Returns the time that each part took: "reference" (the study's own), "expert 1" ..."""
        total: dict[str, float] = {}
        for record in read_records(self.folder / "times.jsonl"):
            total[record["part"]] = total.get(record["part"], 0.0) + record["seconds"]
        return total

    def expert_config(self, number: int) -> dict:
        """Returns the configuration of an expert's training run."""
        config = copy.deepcopy(self.config)
        config["training"] |= {
            "steps": self.steps,
            "learning_rate_schedule": "constant",  # a decay would make all converge at the end
            "log_every": self.loss_every,
            "sample_every": None,  # an expert alone draws no images
        }
        interval = Clusters(self._interval(number), f"expert {number} of {self.num_experts}")
        described = interval.get_config()
        # A curriculum of one stage: the interval never changes.
        config["curriculum"] = {"kind": "paper", "clusters": described["name"], "num_clusters": 1}
        config["curriculum"] |= {"patience": 1, "edges": described["edges"]}
        # What else the numbers depend on, so that no others are mixed with them.
        config["study"] = {"loss_every": self.loss_every, "loss_images": self.loss_images}
        config["study"]["quality"] = self.evaluator and {
            "every": self.quality_every,
            "num_images": self.num_images,
            "num_steps": self._sampler().num_steps,
            "extractor": self.evaluator.extractor.describe(),
            "reference": self._reference_digest(),
        }
        return config

    def _interval(self, number: int) -> tuple[float, float]:
        return tuple(self.clusters.edges[number - 1 : number + 1].tolist())

    def _workdir(self, number: int) -> Path:
        return self.folder / "experts" / f"{number:02d}"

    def _result(self, number: int) -> Path:
        return self._workdir(number) / "result.json"

    def _finished(self, number: int) -> bool:
        """Whether an expert of this study has been trained to its end and measured."""
        workdir = Workdir(self._workdir(number))
        if workdir.config_file.exists():
            self._check_same(workdir, self.expert_config(number))
        return self._result(number).is_file()

    def _check_same(self, workdir: Workdir, config: dict) -> None:
        """Raises a ValueError if a run of the study was begun with other settings."""
        old, new = workdir.config(), json.loads(json.dumps(config))
        changes = differences(old, new)
        # A run may be trained further, but its curve would no longer be that of this study.
        steps = [run["training"]["steps"] for run in (old, new)]
        if steps[0] != steps[1]:
            changes.append(f"training.steps was {steps[0]} and is now {steps[1]}")
        refuse_another_study(self.folder, changes)

    def _images(self, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        backbone = self.config["model"]["backbone"]
        images, labels = read_images(
            self.source, backbone["image_size"], backbone["channels"], count
        )
        return images, None if backbone["num_classes"] == 0 else labels

    def _sampler(self) -> Sampler:
        return build_run_sampler(self.config, self.num_steps)

    @functools.cached_property  # with what is compiled for it
    def _reference(self) -> DiffusionModel:
        model, config = load_run(self.reference_folder)
        ours, theirs = self.config["model"], config["model"]
        changes = [
            f"{part} {theirs[part]['config']}, not {ours[part]['config']}"
            for part in ("schedule", "parameterization")
            if ours[part] != theirs[part]
        ]
        wanted, found = ours["backbone"], theirs["backbone"]
        changes += [
            f"{name} {found[name]}, not {wanted[name]}"
            for name in ("image_size", "channels", "num_classes")
            if found[name] != wanted[name]
        ]
        if changes:
            raise ValueError(
                "The reference must have the experts' schedule, parameterization, images and "
                f"classes: give another run. Received: reference={str(self.reference_folder)!r} "
                f"with {'; '.join(changes)}"
            )
        return model

    def _reference_digest(self) -> str:
        """What tells one reference from another: a digest of its weights file."""
        workdir = Workdir(self.reference_folder)
        if workdir.weights_step() is None:
            raise ValueError(
                "The reference must be a finished run, and train_reference() makes one of the "
                f"study's own. Received: reference={str(self.reference_folder)!r}"
            )
        files = (workdir.weights_file(which) for which in ("ema", "raw"))
        kept = next(path for path in files if path.is_file())
        return hashlib.sha256(kept.read_bytes()).hexdigest()[:16]

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Records how long a part of the study took, also where it did not come to its end."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            append_record(self.folder / "times.jsonl", {"part": part, "seconds": seconds})


def refuse_another_study(folder: Path, changes: Sequence[str]) -> None:
    """Raises a ValueError if the settings of a study have changed, by lines of `differences`."""
    if changes:
        raise ValueError(
            "The folder holds another study: choose another one, or the same settings. "
            f"Received: folder={str(folder)!r}, where\n  " + "\n  ".join(changes)
        )


def default_intervals(config: dict, num_experts: int) -> Clusters:
    """Returns the paper's intervals for experts: uniform ones of timesteps and of flows, and
    quantiles of the objective's density where the schedule is EDM's.

    Source: Kim et al., "Denoising Task Difficulty-based Curriculum for Training Diffusion Models",
        ICLR 2025, as far as it is known: see the study's document.
    """
    schedule = keras.saving.deserialize_keras_object(config["model"]["schedule"])
    kind = "quantile" if isinstance(schedule, EDM) else "uniform"
    return make_clusters(config["model"], {"clusters": kind, "num_clusters": num_experts})

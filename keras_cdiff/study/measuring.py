"""What watches an expert and keeps its study in order: curves, times, settings."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_cdiff.common.files import append_record
from keras_cdiff.evaluation import EvaluationCallback, ValidationLossCallback
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Sampler
from keras_cdiff.study.denoised_images import DenoisedImages


class _FromTheStart:
    """Measures before training, too."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        if self._step() == 0:
            self.act(0, None)


class LossCurve(_FromTheStart, ValidationLossCallback):
    """The loss of an expert."""


class QualityCurve(_FromTheStart, EvaluationCallback):
    """The quality of an expert."""


def denoised_by(
    reference: DiffusionModel,
    images: np.ndarray,
    labels: np.ndarray | None,
    interval: Sequence[float],
    expert: DiffusionModel,
    num_samples: int,
    sampler: Sampler,
    use_ema: bool,
    name: str,
    **others: object,
) -> DenoisedImages:
    """Makes what `EvaluationCallback` judges."""
    return DenoisedImages(
        expert, reference, images, labels, interval, sampler, use_ema=use_ema, name=name
    )


def refuse_another_study(folder: Path, changes: Sequence[str]) -> None:
    """Raises a ValueError if there are changes between a study's folder and what is asked of it.

    Args:
        folder: of the study.
        changes: a line each, as `keras_cdiff.training.workdir.differences` returns them.
    """
    if changes:
        raise ValueError(
            "The folder holds another study: choose another one, or the same settings. "
            f"Received: folder={str(folder)!r}, where\n  " + "\n  ".join(changes)
        )


class Timed:
    """Records how long a part of the study took, also where it did not come to its end."""

    def __init__(self, path: Path, part: str):
        self.path, self.part = path, part

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self._began
        append_record(self.path, {"part": self.part, "seconds": seconds})

"""Diffusion models trained in Keras 3 with a curriculum over noise levels."""

from keras_cdiff import (
    augmentation,
    autoencoders,
    backbones,
    convert,
    curriculum,
    data,
    distribution,
    ema,
    evaluation,
    export,
    objectives,
    parameterizations,
    presets,
    samplers,
    schedules,
    study,
    training,
)
from keras_cdiff.curriculum import CurriculumCallback
from keras_cdiff.export import export_sampler
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.model.guarded_optimizer import GuardedOptimizer
from keras_cdiff.samplers import sample
from keras_cdiff.training import load
from keras_cdiff.version import __version__

__all__ = [
    "CurriculumCallback",
    "DiffusionModel",
    "GuardedOptimizer",
    "__version__",
    "augmentation",
    "autoencoders",
    "backbones",
    "convert",
    "curriculum",
    "data",
    "distribution",
    "ema",
    "evaluation",
    "export",
    "export_sampler",
    "load",
    "objectives",
    "parameterizations",
    "presets",
    "sample",
    "samplers",
    "schedules",
    "study",
    "training",
]

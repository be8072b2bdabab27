"""Objectives: which noise levels are drawn in training, and how their losses are weighted."""

from keras_cdiff.objectives.densities import (
    LogitNormalTime,
    LogNormalSigma,
    LogUniformSigma,
    LogUniformVariance,
    Objective,
    UniformTime,
    UniformTimesteps,
)
from keras_cdiff.objectives.weightings import (
    P2,
    Constant,
    EDMWeight,
    ImageWeighting,
    MinSNR,
    Weighting,
)

__all__ = [
    "P2",
    "Constant",
    "EDMWeight",
    "ImageWeighting",
    "LogNormalSigma",
    "LogUniformSigma",
    "LogUniformVariance",
    "LogitNormalTime",
    "MinSNR",
    "Objective",
    "UniformTime",
    "UniformTimesteps",
    "Weighting",
]

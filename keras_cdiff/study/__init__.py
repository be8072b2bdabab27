"""The difficulty study: which denoising tasks are hard, measured."""

from keras_cdiff.study.convergence import ConvergenceStudy, default_intervals
from keras_cdiff.study.curves import (
    ExpertCurves,
    converged,
    iterations_to_reach,
    normalised,
    rank_correlation,
)
from keras_cdiff.study.denoised_images import DenoisedImages
from keras_cdiff.study.page import trend
from keras_cdiff.study.relative_entropy import (
    EntropyCurve,
    gaussian_relative_entropy,
    measure_entropy,
    relative_entropy,
    spread_levels,
)
from keras_cdiff.study.report import convergence_clusters, write_report
from keras_cdiff.study.run import run_study

__all__ = [
    "ConvergenceStudy",
    "DenoisedImages",
    "EntropyCurve",
    "ExpertCurves",
    "converged",
    "convergence_clusters",
    "default_intervals",
    "gaussian_relative_entropy",
    "iterations_to_reach",
    "measure_entropy",
    "normalised",
    "rank_correlation",
    "relative_entropy",
    "run_study",
    "spread_levels",
    "trend",
    "write_report",
]

"""The difficulty study: which denoising tasks are hard, measured."""

from keras_cdiff.study.convergence import ConvergenceStudy, ExpertCurves, default_intervals
from keras_cdiff.study.curves import converged, iterations_to_reach, normalised, rank_correlation
from keras_cdiff.study.denoised_images import DenoisedImages
from keras_cdiff.study.gaussian import gaussian_relative_entropy
from keras_cdiff.study.relative_entropy import relative_entropy

__all__ = [
    "ConvergenceStudy",
    "DenoisedImages",
    "ExpertCurves",
    "converged",
    "default_intervals",
    "gaussian_relative_entropy",
    "iterations_to_reach",
    "normalised",
    "rank_correlation",
    "relative_entropy",
]

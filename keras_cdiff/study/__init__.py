"""The difficulty study: which denoising tasks are hard, measured."""

from keras_cdiff.study.gaussian import gaussian_relative_entropy
from keras_cdiff.study.relative_entropy import relative_entropy

__all__ = ["gaussian_relative_entropy", "relative_entropy"]

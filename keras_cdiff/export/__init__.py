"""Trained models as TensorFlow SavedModels that sample."""

from keras_cdiff.export.description import describe_run, describe_weights
from keras_cdiff.export.exporter import export_sampler

__all__ = ["describe_run", "describe_weights", "export_sampler"]

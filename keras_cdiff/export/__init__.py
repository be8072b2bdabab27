"""Trained models as TensorFlow SavedModels that sample."""

from keras_cdiff.export.description import describe_run
from keras_cdiff.export.exporter import export_sampler

__all__ = ["describe_run", "export_sampler"]

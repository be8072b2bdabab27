"""Trained models as artefacts that sample: TensorFlow SavedModels, ONNX, LiteRT."""

from keras_cdiff.export.description import describe_run, describe_weights
from keras_cdiff.export.exporter import export_sampler

__all__ = ["describe_run", "describe_weights", "export_sampler"]

"""The model: `process` holds what a training step computes, `diffusion_model` the step itself."""

from keras_cdiff.model.diffusion_model import DiffusionModel

__all__ = ["DiffusionModel"]

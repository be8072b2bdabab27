"""Networks that predict from a noisy image and its noise level."""

from keras_cdiff.backbones.dit import DiT

__all__ = ["DiT"]

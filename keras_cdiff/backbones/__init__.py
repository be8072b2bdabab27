"""Networks that predict from a noisy image and its noise level."""

from keras_cdiff.backbones.dhariwal_unet import DhariwalUNet
from keras_cdiff.backbones.dit import DiT
from keras_cdiff.backbones.song_unet import SongUNet

__all__ = ["DhariwalUNet", "DiT", "SongUNet"]

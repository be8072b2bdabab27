"""Official checkpoints as Keras networks."""

from keras_cdiff.convert.dit import dit_from_official
from keras_cdiff.convert.edm import edm_from_official

__all__ = ["dit_from_official", "edm_from_official"]

"""Weights of other projects: downloaded once and checked, and read without their frameworks."""

from keras_cdiff.weights.download import RemoteFile, fetch
from keras_cdiff.weights.weights_file import read_state_dict, weights_version

__all__ = ["RemoteFile", "fetch", "read_state_dict", "weights_version"]

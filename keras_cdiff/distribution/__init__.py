"""Several devices and processes, each backend by its own engine."""

from keras_cdiff.distribution.cluster import Cluster, find_cluster
from keras_cdiff.distribution.connection import connected
from keras_cdiff.distribution.distribute import KINDS, distribute, to_host
from keras_cdiff.distribution.engine import Engine
from keras_cdiff.distribution.layouts import layout_map
from keras_cdiff.distribution.processes import (
    LostPeer,
    Processes,
    spread,
    spreading,
)
from keras_cdiff.distribution.signs_of_life import apart, first_does

__all__ = [
    "KINDS",
    "Cluster",
    "Engine",
    "LostPeer",
    "Processes",
    "apart",
    "connected",
    "distribute",
    "find_cluster",
    "first_does",
    "layout_map",
    "spread",
    "spreading",
    "to_host",
]

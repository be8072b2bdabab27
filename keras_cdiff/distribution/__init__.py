"""Several devices and processes, each backend by its own engine."""

from keras_cdiff.distribution.cluster import Cluster, find_cluster
from keras_cdiff.distribution.distribute import KINDS, connected, distribute, to_host
from keras_cdiff.distribution.engine import Engine
from keras_cdiff.distribution.layouts import layout_map
from keras_cdiff.distribution.processes import LostPeer, Processes
from keras_cdiff.distribution.shared_work import local_work, on_rank0, share, shared_by, sharing

__all__ = [
    "KINDS",
    "Cluster",
    "Engine",
    "LostPeer",
    "Processes",
    "connected",
    "distribute",
    "find_cluster",
    "layout_map",
    "local_work",
    "on_rank0",
    "share",
    "shared_by",
    "sharing",
    "to_host",
]

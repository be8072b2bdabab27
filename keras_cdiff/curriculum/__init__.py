"""Curricula over noise levels: clusters, pacing, and the callback that joins them to `fit`."""

from keras_cdiff.curriculum.callback import CurriculumCallback
from keras_cdiff.curriculum.clusters import (
    Clusters,
    quantile_clusters,
    snr_clusters,
    uniform_clusters,
)
from keras_cdiff.curriculum.difficulty import difficulty_clusters
from keras_cdiff.curriculum.pacing import FixedPacing, PatiencePacing

__all__ = [
    "Clusters",
    "CurriculumCallback",
    "FixedPacing",
    "PatiencePacing",
    "difficulty_clusters",
    "quantile_clusters",
    "snr_clusters",
    "uniform_clusters",
]

"""Evaluation: distances between sets of images, and the loss by noise level."""

from keras_cdiff.evaluation.callbacks import EvaluationCallback, ValidationLossCallback
from keras_cdiff.evaluation.evaluator import METRICS, Evaluator, Result, as_reference
from keras_cdiff.evaluation.features import Extractor, from_model, open_extractor
from keras_cdiff.evaluation.frechet import frechet_distance, frechet_distance_infinity
from keras_cdiff.evaluation.image_sets import (
    GeneratedImages,
    ImageSet,
    SourceImages,
    proportional_labels,
)
from keras_cdiff.evaluation.inception_score import inception_score
from keras_cdiff.evaluation.kernel import kernel_distance
from keras_cdiff.evaluation.precision_recall import precision_recall
from keras_cdiff.evaluation.statistics import FeatureStatistics
from keras_cdiff.evaluation.validation_loss import ValidationLoss

__all__ = [
    "METRICS",
    "EvaluationCallback",
    "Evaluator",
    "Extractor",
    "FeatureStatistics",
    "GeneratedImages",
    "ImageSet",
    "Result",
    "SourceImages",
    "ValidationLoss",
    "ValidationLossCallback",
    "as_reference",
    "frechet_distance",
    "frechet_distance_infinity",
    "from_model",
    "inception_score",
    "kernel_distance",
    "open_extractor",
    "precision_recall",
    "proportional_labels",
]

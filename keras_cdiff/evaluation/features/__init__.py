"""Feature extractors: networks that turn images into the features that distances compare."""

from keras_cdiff.evaluation.features.extractor import (
    Extractor,
    from_model,
    inception,
    mobilenet_v2,
    open_extractor,
)

__all__ = ["Extractor", "from_model", "inception", "mobilenet_v2", "open_extractor"]

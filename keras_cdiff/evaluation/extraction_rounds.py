"""Features of a set that several processes extract together, round by round."""

from collections.abc import Iterator

import numpy as np

from keras_cdiff.distribution import apart, spreading
from keras_cdiff.evaluation.features import Extractor
from keras_cdiff.evaluation.image_sets import ImageSet


def extract_in_rounds(
    images: ImageSet, extractor: Extractor, done: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields, in all processes, features and logits of the images from `done` on, in their order.

    In each round every process extracts images of its own that follow those of the one before it.

    Args:
        images: the set.
        extractor: the network that sees the images.
        done: number of images that have been extracted, the same in all processes.
        batch_size: images the extractor sees at once.

    Raises:
        ValueError: if the set yields more or fewer images than it says, or is another one in
            another process.
        LostPeer: if another process has failed or ended.
    """
    processes = spreading()
    described = (images.digest(), extractor.describe(), batch_size, images.batch_size)
    processes.check_same("images and extractor", described)
    count, least = len(images), images.batch_size
    # All of what the set makes at once, and not so much that another process has nothing to do.
    size = max(1, batch_size // least) * least
    size = min(size, max(least, -(-(count - done) // processes.count)))
    while done < count:
        edges = [min(done + number * size, count) for number in range(processes.count + 1)]
        own = range(*edges[processes.index : processes.index + 2])
        with apart():
            part = _read(images, own)
            outputs = _empty(extractor)
            for first in range(0, len(part), batch_size):
                features, logits = extractor(part[first : first + batch_size])
                outputs["features"].append(features)
                outputs["logits"].append(logits)
        features = processes.gather(np.concatenate(outputs["features"]))
        logits = [None] * processes.count
        if extractor.num_logits:
            logits = processes.gather(np.concatenate(outputs["logits"]))
        for number, length in enumerate(map(len, features)):
            if length:
                yield features[number], logits[number]
        done = edges[-1]


def wrong_count(images: ImageSet, seen: int | str) -> ValueError:
    """Returns the error about a set that yields more or fewer images than it says."""
    return ValueError(
        f"A set must yield as many images as its len() says, {len(images)}. "
        f"Received: images {images.name!r}, which yield {seen}"
    )


def _read(images: ImageSet, own: range) -> list[np.ndarray]:
    """The images of these places; of the last ones it is seen that no others follow."""
    part: list[np.ndarray] = []
    count = len(images)
    if own:
        for batch in images.batches(own.start, len(own)):
            part.extend(batch)
            if len(part) > len(own) or (len(part) == len(own) and own.stop < count):
                break
    if len(part) < len(own) or (len(part) > len(own) and own.stop == count):
        raise wrong_count(images, "more" if len(part) > len(own) else own.start + len(part))
    return part[: len(own)]


def _empty(extractor: Extractor) -> dict[str, list[np.ndarray]]:
    """No features and no logits, for a process without an image of its own."""
    widths = {"features": extractor.feature_width, "logits": extractor.num_logits}
    return {name: [np.empty((0, width), np.float32)] for name, width in widths.items()}

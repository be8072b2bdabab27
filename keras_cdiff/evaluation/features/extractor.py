"""The extractor: a network that turns images into features, and what a result says of it."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.batch_function import PREFERS_JIT, BatchFunction
from keras_cdiff.evaluation.features.resize import check_mode, resize, resize_image


class Extractor:
    """Turns uint8 images into features: resize, normalisation and network in one compiled graph.

    The network sees scale * x + offset in float32, whatever the global dtype policy, with x the
    resized pixels in [0, 255]. One graph is compiled for each size of images and of batch; a batch
    smaller than one compiled before is filled up, so that the last batch of a set needs no graph
    of its own.

    Args:
        network: a `keras.Model` from images (B, H, W, C) to features (B, D), or to features and
            logits (B, K).
        name: what the extractor is called in results.
        version: what tells the network from others of its name: a digest of its weights, and of
            whatever else the name does not tell.
        image_size: height and width to which images are resized; None takes them as they come.
        resize: one of `keras_cdiff.evaluation.features.resize.MODES`.
        scale: number, or one for each channel.
        offset: number, or one for each channel.

    Attributes:
        feature_width: D.
        num_logits: K, or 0 if the network gives no logits.
        channels: C, 3 or 1.

    Raises:
        ValueError: if the resize mode is unknown, or the network is not as described.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        name: str,
        version: str,
        image_size: tuple[int, int] | None = None,
        resize: str = "clean",
        scale: float | np.ndarray = 1.0,
        offset: float | np.ndarray = 0.0,
    ):
        check_mode(resize)
        self.name, self.version, self.resize = name, version, resize
        self.image_size = None if image_size is None else tuple(int(n) for n in image_size)
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(
                "The image size must be a positive height and width, or None. "
                f"Received: image_size={image_size}"
            )
        self.channels = input_shape(network)[-1] or 3
        self._network, self._scale, self._offset = network, scale, offset
        self.feature_width, self.num_logits = self._output_widths()
        self._outputs = BatchFunction(self._compute, network, jit_compile=PREFERS_JIT)

    def __call__(
        self, images: np.ndarray | Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the features of a batch of images, and its logits.

        Args:
            images: uint8 (B, H, W, C), or a sequence of B images (H, W, C), which are resized one
                by one if they differ in size. One channel is repeated where the network takes
                three.

        Returns:
            float32 features (B, feature_width), and float32 logits (B, num_logits) or None.

        Raises:
            ValueError: if the images are of another type, rank or number of channels.
        """
        images = self._stacked(images)
        outputs = self._outputs(images)
        return outputs[0], outputs[1] if self.num_logits else None

    def describe(self) -> dict:
        """Returns what a result says of its extractor, as a dict for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "feature_width": self.feature_width,
            "num_logits": self.num_logits,
            "image_size": None if self.image_size is None else list(self.image_size),
            "resize": self.resize,
        }

    def __repr__(self) -> str:
        return f"Extractor({self.name!r}, version={self.version!r}, resize={self.resize!r})"

    def prepare(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Returns what the network sees of images (B, H, W, 1 or C), in float32."""
        images = resize(images, self.image_size or images.shape[1:3], self.resize)
        if images.shape[-1] != self.channels:
            images = ops.repeat(images, self.channels, axis=-1)
        return images * ops.cast(self._scale, "float32") + ops.cast(self._offset, "float32")

    def _compute(self, images: keras.KerasTensor) -> list[keras.KerasTensor]:
        outputs = self._network(self.prepare(images), training=False)
        return [ops.cast(output, "float32") for output in keras.tree.flatten(outputs)]

    def _stacked(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """One checked array: uint8, or float32 of images that had to be resized here."""
        if isinstance(images, np.ndarray) or len({np.shape(image) for image in images}) <= 1:
            return self._checked(images)
        for image in images:
            self._checked(np.asarray(image)[None])
        if self.image_size is None:
            raise ValueError(
                f"{self.name} does not resize, so all images must have one size: give from_model "
                "an image_size. Received: images of shapes "
                f"{', '.join(map(str, sorted({image.shape for image in images})))}"
            )
        resized = [resize_image(image, self.image_size, self.resize) for image in images]
        return np.stack([np.broadcast_to(r, (*r.shape[:2], self.channels)) for r in resized])

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        channels = {1, self.channels}
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.size == 0
            or images.shape[-1] not in channels
        ):
            raise ValueError(
                f"{self.name} takes uint8 images (B, H, W, C), at least one, C being "
                f"{' or '.join(map(str, sorted(channels)))}; convert floats in [-1, 1] with "
                "keras_cdiff.data.to_uint8, and lay RGBA over a colour. "
                f"Received: images of shape {images.shape}, dtype {images.dtype}"
            )
        return images

    def _output_widths(self) -> tuple[int, int]:
        """The widths of features and logits, found without computing them."""
        shape = input_shape(self._network)
        height, width = self.image_size or (None, None)
        probe = keras.KerasTensor((None, height, width, self.channels), "float32")
        try:
            outputs = keras.tree.flatten(self._network(probe, training=False))
        except Exception as error:  # whatever the network raises when images do not suit it
            raise ValueError(
                f"The network must take float32 images {probe.shape}; give from_model the "
                f"image_size that it needs. Received: a network {self.name!r} of input shape "
                f"{shape}, which says: {error}"
            ) from error
        shapes = [tuple(output.shape) for output in outputs]
        if len(shapes) not in (1, 2) or any(len(s) != 2 or not s[1] for s in shapes):
            raise ValueError(
                "The network must give features (B, D), or features and logits (B, K); end it with "
                "a GlobalAveragePooling2D or a Flatten. "
                f"Received: a network {self.name!r} of output shapes {shapes}"
            )
        return shapes[0][1], shapes[1][1] if len(shapes) == 2 else 0


def input_shape(model: keras.Model) -> tuple[int | None, ...]:
    """The shape (B, H, W, C) that a model states for its input, None where it leaves it open."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return (None,) * 4
    shape = tuple(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or shape[-1] not in (None, 1, 3):
        raise ValueError(
            "An extractor's network takes one batch of images (B, H, W, C), C being 3 or 1. "
            f"Received: a network {model.name!r} of inputs {[tuple(i.shape) for i in inputs]}"
        )
    return shape

"""Augmentation of training images. The network is conditioned on its parameters, so that samples
show none of it.
"""

import functools
import math

import keras
import numpy as np
from keras import ops

from keras_cdiff.distribution import replica

Tensor = keras.KerasTensor

# Low-pass filter of the symlet of 6 vanishing moments (Daubechies, "Ten Lectures on Wavelets").
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_BORDER = len(_SYM6) // 4  # pixels around the output that its low-pass filter reaches into


@keras.saving.register_keras_serializable("keras_cdiff")
class Augmentation:
    """Random flips, scaling, rotation, anisotropic scaling and translation of square images.

    Each transformation is applied to an image with its own probability, min(1, multiplier
    probability). The network is conditioned on the parameters, nine numbers an image that are all
    zero for an image as it is. Sampling uses zeros: the augmentation does not leak into samples.
    Geometric transformations resample the reflected image bilinearly at twice its resolution,
    between the two halves of a wavelet filter.

    The parameters are: x flip (0 or 1), y flip (0 or 1), scaling (in standard deviations), cos - 1
    and sin of the rotation, cos and sin of the anisotropy's direction times its amount (in standard
    deviations), x and y translation (in standard deviations).

    Args:
        probability: common factor of all probabilities, in [0, 1].
        x_flip: multiplier of the probability that the x flip is drawn, which then mirrors half of
            the images; like the five below >= 0, where 0 leaves it out.
        y_flip: multiplier for the y flip, drawn likewise.
        scale: multiplier for scaling both axes by 2^(scale_std n), n unit normal.
        rotation: multiplier for a rotation by an angle uniform in rotation_max [-180, 180] degrees.
        anisotropy: multiplier for scaling one axis by 2^(anisotropy_std n) and the other by the
            inverse.
        translation: multiplier for a translation by translation_std n of the image's side along
            each axis.
        scale_std: standard deviation of log2 of the scale, >= 0.
        rotation_max: largest rotation as a fraction of half a turn, in [0, 1].
        anisotropy_std: standard deviation of log2 of the anisotropic scale, >= 0.
        anisotropy_rotation: probability that its axis has a random direction and is not x, in
            [0, 1].
        translation_std: standard deviation of a translation in sides of the image, >= 0.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, appendix F.2, after Karras et al., "Training Generative Adversarial Networks with
        Limited Data", 2020, appendix B. The defaults are the former's for CIFAR-10.
    """

    num_parameters = 9

    def __init__(
        self,
        probability: float = 0.12,
        x_flip: float = 1e8,
        y_flip: float = 1.0,
        scale: float = 1.0,
        rotation: float = 1.0,
        anisotropy: float = 1.0,
        translation: float = 1.0,
        scale_std: float = 0.2,
        rotation_max: float = 1.0,
        anisotropy_std: float = 0.2,
        anisotropy_rotation: float = 0.5,
        translation_std: float = 0.125,
    ):
        amounts = {
            "probability": probability,
            "x_flip": x_flip,
            "y_flip": y_flip,
            "scale": scale,
            "rotation": rotation,
            "anisotropy": anisotropy,
            "translation": translation,
            "scale_std": scale_std,
            "rotation_max": rotation_max,
            "anisotropy_std": anisotropy_std,
            "anisotropy_rotation": anisotropy_rotation,
            "translation_std": translation_std,
        }
        for name, value in amounts.items():
            limit = 1.0 if name in ("probability", "rotation_max", "anisotropy_rotation") else None
            number = isinstance(value, int | float) and 0.0 <= value < math.inf
            if not number or (limit is not None and value > limit):
                interval = "[0, 1]" if limit else "[0, infinity)"
                raise ValueError(f"`{name}` must lie in {interval}. Received: {name}={value!r}")
            setattr(self, name, float(value))
        self._names = tuple(amounts)

    def __call__(self, images: Tensor, seed: keras.random.SeedGenerator) -> tuple[Tensor, Tensor]:
        """Returns augmented images and their parameters.

        Args:
            images: (B, H, H, C).
            seed: generator of the random numbers.

        Returns:
            (B, H, H, C) and (B, 9), float32.
        """
        count = ops.shape(images)[0]
        uniform = replica.uniform((count, 11), seed)
        normal = replica.normal((count, 4), seed)
        return self.transform(images, uniform, normal)

    def transform(self, images: Tensor, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Returns augmented images and their parameters for given random numbers.

        Args:
            images: (B, H, H, C).
            uniform: (B, 11) in [0, 1): x flip, whether it is drawn; y flip, whether; whether to
                scale; rotation, whether; direction of the anisotropy, whether, whether along it;
                whether to translate. A flip is one for numbers >= 0.5, "whether" yes for small
                ones.
            normal: (B, 4) unit normal: scale, anisotropy, x and y translation.

        Returns:
            (B, H, H, C) and (B, 9), float32.

        Raises:
            ValueError: if the images are not square.
        """
        if images.shape[1] != images.shape[2] or images.shape[1] is None:
            raise ValueError(
                "Images to augment must be square, of a known size: (batch, side, side, channels). "
                f"Received: images with shape {tuple(images.shape)}"
            )
        chosen = self._choose(uniform, normal)
        images = ops.cast(images, "float32")
        for flip, axis in (("x_flip", 2), ("y_flip", 1)):
            mirrored = ops.reshape(chosen[flip] > 0.5, (-1, 1, 1, 1))
            images = ops.where(mirrored, ops.flip(images, axis=axis), images)
        if any((self.scale, self.rotation, self.anisotropy, self.translation)):
            images = _resample(images, *self._inverse(chosen, images.shape[1]))
        return images, self._parameters(chosen)

    def _choose(self, uniform: Tensor, normal: Tensor) -> dict[str, Tensor]:
        """Returns the amounts (B,) of all transformations, zero for those an image is spared."""
        u, n = ops.unstack(uniform, 11, axis=1), ops.unstack(normal, 4, axis=1)

        def chance(amount: Tensor, number: Tensor, probability: float) -> Tensor:
            return ops.where(number < probability, amount, ops.zeros_like(amount))

        def chosen(amount: Tensor, number: Tensor, multiplier: float) -> Tensor:
            return chance(amount, number, min(1.0, multiplier * self.probability))

        def coin(number: Tensor) -> Tensor:
            return ops.cast(number >= 0.5, "float32")

        angle, direction = (math.pi * (2.0 * number - 1.0) for number in (u[5], u[7]))
        return {
            "x_flip": chosen(coin(u[0]), u[1], self.x_flip),
            "y_flip": chosen(coin(u[2]), u[3], self.y_flip),
            "scale": chosen(n[0], u[4], self.scale),
            "rotation": chosen(self.rotation_max * angle, u[6], self.rotation),
            "anisotropy": chosen(n[1], u[8], self.anisotropy),
            "direction": chance(direction, u[9], self.anisotropy_rotation),
            "x": chosen(n[2], u[10], self.translation),
            "y": chosen(n[3], u[10], self.translation),
        }

    def _parameters(self, chosen: dict[str, Tensor]) -> Tensor:
        rotation, anisotropy, direction = (
            chosen[name] for name in ("rotation", "anisotropy", "direction")
        )
        columns = (
            chosen["x_flip"],
            chosen["y_flip"],
            chosen["scale"],
            ops.cos(rotation) - 1.0,
            ops.sin(rotation),
            anisotropy * ops.cos(direction),
            anisotropy * ops.sin(direction),
            chosen["x"],
            chosen["y"],
        )
        return ops.stack(columns, axis=1)

    def _inverse(self, chosen: dict[str, Tensor], side: int) -> tuple[tuple, tuple]:
        """Returns what leads from places in the output back to places in the image, both in pixels
        from the centre: the matrix ((xx, xy), (yx, yy)) and the shift (x, y), entries (B,).

        The matrix is scaling, then rotation, then scaling along a direction and across it.
        """
        shrink = ops.exp2(-self.scale_std * chosen["scale"])
        cos, sin = ops.cos(chosen["rotation"]), ops.sin(chosen["rotation"])
        along = ops.exp2(-self.anisotropy_std * chosen["anisotropy"])
        across = 1.0 / along
        # Symmetric: the mean of the two scales, and half their difference along the direction.
        mean, half = 0.5 * (along + across), 0.5 * (along - across)
        double = 2.0 * chosen["direction"]
        stretch_xx, stretch_yy = mean + half * ops.cos(double), mean - half * ops.cos(double)
        stretch_xy = -half * ops.sin(double)
        xx = shrink * (cos * stretch_xx - sin * stretch_xy)
        xy = shrink * (cos * stretch_xy - sin * stretch_yy)
        yx = shrink * (sin * stretch_xx + cos * stretch_xy)
        yy = shrink * (sin * stretch_xy + cos * stretch_yy)
        x, y = (-side * self.translation_std * chosen[axis] for axis in "xy")
        return ((xx, xy), (yx, yy)), (xx * x + xy * y, yx * x + yy * y)

    def get_config(self) -> dict:
        return {name: getattr(self, name) for name in self._names}

    @classmethod
    def from_config(cls, config: dict) -> "Augmentation":
        return cls(**config)


def check_augmentation(augmentation: Augmentation | None, backbone: keras.Model) -> None:
    """Raises a ValueError unless the network can be told what the augmentation does."""
    if augmentation is None:
        return
    if not isinstance(augmentation, Augmentation):
        raise ValueError(
            "`augmentation` must be an Augmentation or None. "
            f"Received: augmentation={augmentation!r}"
        )
    features = getattr(backbone, "augment_features", 0)
    if features != augmentation.num_parameters:
        raise ValueError(
            "An augmentation on which the network is not conditioned would show in its samples: "
            f"build the backbone with augment_features={augmentation.num_parameters}, or leave the "
            f"augmentation out. Received: backbone={type(backbone).__name__} with "
            f"augment_features={features}"
        )


def _resample(images: Tensor, matrix: tuple, shift: tuple) -> Tensor:
    """Transforms images (B, H, H, C) by the way back from output to image, as `_inverse` has it."""
    side = images.shape[1]
    up, down = (ops.convert_to_tensor(matrix) for matrix in _filters(side))
    fine = ops.einsum("qw,bhwc->bhqc", up, images)
    fine = ops.einsum("ph,bhqc->bpqc", up, fine)
    # In pixels of the image from its centre. The filter shifts by half a fine pixel.
    size = 2 * (side + 2 * _BORDER)
    places = 0.5 * (np.arange(size, dtype="float32") + 1.0 - size / 2)
    places = ops.convert_to_tensor(places)

    def source(row: tuple, offset: Tensor) -> Tensor:
        by_x, by_y, offset = (value[:, None, None] for value in (*row, offset))
        place = by_x * places[None, None, :] + by_y * places[None, :, None] + offset
        return 2.0 * place + (3.0 * side - 3.0)

    moved = _bilinear(fine, *(source(*pair) for pair in zip(matrix, shift, strict=True)))
    moved = ops.einsum("wq,bpqc->bpwc", down, moved)
    return ops.einsum("hp,bpwc->bhwc", down, moved)


def _bilinear(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Returns images (B, P, P, C) at columns x and rows y (B, Q, Q), zero outside.

    The images have a row and a column of zeros before their pixel 0, and two after their last.
    """
    side, channels = images.shape[1], images.shape[3]
    flat = ops.reshape(images, (-1, channels))
    first = ops.arange(ops.shape(images)[0], dtype="int32") * (side * side)

    def split(place: Tensor) -> tuple[Tensor, Tensor]:
        place = ops.clip(place + 1.0, 0.0, side - 2.0)
        whole = ops.floor(place)
        return ops.cast(whole, "int32"), (place - whole)[..., None]

    (column, right), (row, low) = split(x), split(y)
    corner = first[:, None, None] + row * side + column

    def at(offset: int) -> Tensor:
        return ops.take(flat, corner + offset, axis=0)

    above = at(0) * (1.0 - right) + at(1) * right
    below = at(side) * (1.0 - right) + at(side + 1) * right
    return above * (1.0 - low) + below * low


@functools.cache
def _filters(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the float32 matrices that one axis of an image is multiplied by.

    The first, (2 (3 side - 2) + 3, side), reflects it on both sides, doubles its resolution, and
    puts zeros around it: see `_bilinear`. The second, (side, 2 side + 12), halves the resolution of
    what was resampled, and cuts off the border.
    """
    taps = np.array(_SYM6)
    distance = np.abs(np.arange(1 - side, 2 * side - 1))
    reflected = np.eye(side)[np.minimum(distance, 2 * (side - 1) - distance)]
    spread = np.zeros((2 * len(reflected), side))
    spread[::2] = reflected
    delay = len(taps) // 2 - 1
    smooth = [np.convolve(column, taps)[delay : delay + len(spread)] for column in spread.T]
    up = np.pad(np.stack(smooth, axis=1), ((1, 2), (0, 0)))
    down = np.zeros((side, 2 * (side + 2 * _BORDER)))
    for pixel in range(side):
        start = 2 * (pixel + _BORDER) - delay
        down[pixel, start : start + len(taps)] = taps
    return up.astype("float32"), down.astype("float32")

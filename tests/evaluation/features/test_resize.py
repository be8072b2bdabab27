"""The resizes equal those of Pillow, TensorFlow 1 and PyTorch."""

import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_cdiff.evaluation.features.resize import MODES, resize, resize_image, resize_matrix

SIZES = [  # from, to: up, down, one of both, odd, not square, tiny
    ((32, 32), (299, 299)),
    ((331, 402), (96, 95)),
    ((64, 317), (120, 80)),
    ((7, 5), (3, 2)),
    ((2, 1), (5, 7)),
]


@pytest.fixture
def noise():
    """A function: height and width -> a uint8 image with the sharpest edges that there are."""

    def draw(size):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (*size, 3))
        image[rng.random(size) < 0.5] = 255
        image[rng.random(size) < 0.3] = 0
        return image.astype("uint8")

    return draw


@pytest.mark.backend_free
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_clean_is_the_bicubic_of_pillow_on_float_channels(noise, size_in, size_out):
    image = noise(size_in)
    channels = [Image.fromarray(image[..., i].astype("float32")) for i in range(3)]
    expected = np.stack([c.resize(size_out[::-1], Image.Resampling.BICUBIC) for c in channels], -1)
    assert size_in != (32, 32) or (expected.min() < -20 and expected.max() > 275)  # it overshoots
    actual = resize_image(image, size_out)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.clip(0, 255), rtol=0, atol=1e-3)


@pytest.mark.backend_free
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_clean_is_the_bicubic_of_pillow_on_bytes_to_one_grey_level(noise, size_in, size_out):
    # Pillow clips bytes after each axis, so stay clear of black and white.
    image = noise(size_in) // 2 + 64
    expected = Image.fromarray(image).resize(size_out[::-1], Image.Resampling.BICUBIC)
    # Pillow also rounds them after each axis: 0.5 + 0.5 * 1.25 grey levels at most.
    actual = np.rint(resize_image(image, size_out))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1)


@pytest.mark.backend_free
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_legacy_pytorch_is_the_bilinear_of_pytorch(noise, size_in, size_out):
    import torch

    image = noise(size_in)
    batch = torch.tensor(image.astype("float64").transpose(2, 0, 1)[None])
    expected = torch.nn.functional.interpolate(batch, size_out, mode="bilinear")
    actual = resize_image(image, size_out, "legacy_pytorch")
    np.testing.assert_allclose(actual, expected[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-4)


@pytest.mark.backend_free
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_legacy_tensorflow_is_the_operation_of_tensorflow_1(noise, size_in, size_out):
    import tensorflow as tf

    image = noise(size_in)
    expected = tf.raw_ops.ResizeBilinear(images=image[None].astype("float32"), size=size_out)
    actual = resize_image(image, size_out, "legacy_tensorflow")
    # TensorFlow rounds positions to float32.
    np.testing.assert_allclose(actual, expected[0].numpy(), rtol=0, atol=0.02)


@pytest.mark.backend_free
def test_legacy_tensorflow_by_hand():
    row = np.array([10.0, 20.0, 40.0])[None, :, None]
    # Positions 0, 0.6, 1.2, 1.8 and 2.4, which is beyond the last pixel.
    expected = [10, 16, 24, 36, 40]
    actual = resize_image(row, (1, 5), "legacy_tensorflow")
    np.testing.assert_allclose(actual[0, :, 0], expected, rtol=1e-6)


@pytest.mark.backend_free
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size_in", "size_out"), [(5, 17), (17, 5), (1, 4), (4, 1), (299, 299)])
def test_weights_of_a_pixel_sum_to_one(mode, size_in, size_out):
    matrix = resize_matrix(size_in, size_out, mode)
    assert matrix.shape == (size_out, size_in)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-14)


@pytest.mark.backend_free
@pytest.mark.parametrize("mode", MODES)
def test_nothing_changes_at_the_same_size(mode, noise):
    np.testing.assert_array_equal(resize_matrix(13, 13, mode), np.eye(13))
    image = noise((6, 9))
    np.testing.assert_array_equal(resize_image(image, (6, 9), mode), image)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_resized_as_its_images_are(mode, noise):
    images = np.stack([noise((21, 34)), noise((21, 34))[::-1]])
    for size in ((60, 15), (21, 34)):
        actual = ops.convert_to_numpy(resize(ops.convert_to_tensor(images), size, mode))
        expected = [resize_image(image, size, mode) for image in images]
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)


@pytest.mark.backend_free
def test_bad_input():
    with pytest.raises(ValueError, match="Received: resize='bicubic'"):
        resize_matrix(4, 8, "bicubic")
    with pytest.raises(ValueError, match="Received: size_in=4, size_out=0"):
        resize_matrix(4, 0)
    with pytest.raises(ValueError, match=r"Received: image of shape \(4, 4\)"):
        resize_image(np.zeros((4, 4)), (8, 8))
    with pytest.raises(ValueError, match="Received: resize='bicubic'"):
        resize_image(np.zeros((4, 4, 3)), (4, 4), "bicubic")
    with pytest.raises(ValueError, match="Received: resize=None"):
        resize(np.zeros((1, 4, 4, 3)), (4, 4), None)

"""The small autoencoder learns, and its scale makes latents of standard deviation 1."""

import re

import numpy as np
import pytest

from keras_cdiff import data
from keras_cdiff.autoencoders import Autoencoder, fit_autoencoder, kl_networks

SMALL = {"factor": 2, "channels": 2, "width": 16, "verbose": 0}


def error(autoencoder, images):
    decoded = autoencoder.decode(autoencoder.moments(images)[..., : autoencoder.channels])
    return np.abs(decoded - images).mean()


@pytest.fixture(scope="module")
def images(smooth_images):
    """float32 (48, 8, 8, 3)."""
    return smooth_images[:, ::2, ::2]


@pytest.fixture(scope="module")
def fitted(images):
    return fit_autoencoder(images, steps=20, batch_size=8, learning_rate=5e-3, **SMALL)


def test_training_lowers_the_error(fitted, images):
    before = Autoencoder(*kl_networks(2, 2, 16), scale=1.0, name="kl")
    assert error(fitted, images) < 0.9 * error(before, images)
    assert fitted.name == "kl"


def test_latents_have_the_standard_deviation_one(fitted, images):
    mean, std = np.split(fitted.moments(images), 2, axis=-1)
    noise = np.random.default_rng(7).standard_normal(mean.shape)
    assert np.std(mean + std * noise) == pytest.approx(1, abs=0.03)
    assert std.min() > 0


@pytest.mark.backend_free
def test_batches_of_a_source_serve_as_well(npz):
    # A pass has two batches, so that it is begun again.
    dataset = data.make_dataset(data.open_source(npz()), 8, 8, num_epochs=1)
    autoencoder = fit_autoencoder(dataset, steps=5, **SMALL)
    pixels, _ = data.read_images(data.open_source(npz()), 8)
    mean, std = np.split(autoencoder.moments(pixels), 2, axis=-1)
    noise = np.random.default_rng(7).standard_normal(mean.shape)
    assert np.std(mean + std * noise) == pytest.approx(1, abs=0.15)  # of 512 values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda images: iter([images[:8]]),
            "an iterable that can be begun again. Received: images",
        ),
        (lambda images: [images[:8] * 100], "in [-1, 1]. Received: images from -"),
        (lambda images: [{"picture": images[:8]}], "under 'image'. Received: ['picture']"),
    ],
)
def test_batches_that_do_not_suit_are_refused(images, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_autoencoder(change(images), steps=3, **SMALL)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda images: images.astype("uint8"), {}, "x / 127.5 - 1. Received: images of shape (48"),
        (lambda images: images[:, 1:], {}, "H and W multiples of 2"),
        (lambda images: images[:9], {"batch_size": 10}, "the 9 images; make it smaller. Received"),
        (lambda images: images, {"steps": 0}, "an integer of at least 1. Received: steps=0"),
        (lambda images: images, {"batch_size": 1.5}, "Received: batch_size=1.5"),
        (lambda images: images, {"seed": -1}, "an integer of at least 0. Received: seed=-1"),
        (lambda images: images, {"learning_rate": 0.0}, "Received: learning_rate=0.0"),
        (lambda images: images, {"kl_weight": -1.0}, "at least 0. Received: kl_weight=-1.0"),
    ],
)
def test_arguments_that_are_refused(images, change, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_autoencoder(change(images), **{"steps": 1, **SMALL, **arguments})

"""Small autoencoders and images for them."""

import keras
import numpy as np
import pytest


@pytest.fixture(scope="session")
def smooth_images():
    """float32 (48, 16, 16, 3) in [-1, 1], each of random smooth colours."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, 16)] * 2, indexing="ij")
    patterns = np.stack([np.ones((16, 16)), rows, columns, rows * columns])
    images = np.einsum("nkc,kij->nijc", rng.normal(size=(48, 4, 3)), patterns)
    return np.tanh(images).astype("float32")


@pytest.fixture(scope="session")
def small():
    """An autoencoder of factor 2 and 2 channels with drawn weights and the scale 0.5."""
    from keras_cdiff.autoencoders import Autoencoder, kl_networks

    return Autoencoder(*kl_networks(factor=2, channels=2, width=16), scale=0.5, name="kl")


@pytest.fixture
def linear():
    """A function: biases (2 C,) of mean and log variance, global policy -> networks without
    hidden layers: the encoder gives the red of every second pixel plus the biases, the decoder
    repeats its first channel.
    """

    def make(biases):
        encoder = keras.layers.Conv2D(len(biases), 2, strides=2, dtype="float32")
        decoder = keras.layers.Conv2DTranspose(3, 2, strides=2, dtype="float32")
        networks = (
            keras.Sequential([keras.Input((None, None, 3), dtype="float32"), encoder]),
            keras.Sequential([keras.Input((None, None, len(biases) // 2)), decoder]),
        )
        kernel = np.zeros((2, 2, 3, len(biases)), "float32")
        kernel[0, 0, 0] = 1
        encoder.set_weights([kernel, np.asarray(biases, "float32")])
        kernel = np.zeros((2, 2, 3, len(biases) // 2), "float32")
        kernel[..., 0] = 1
        decoder.set_weights([kernel, np.zeros(3, "float32")])
        return networks

    return make

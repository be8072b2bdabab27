"""The small networks: their sizes, their weights, and arguments that are refused."""

import re

import keras
import numpy as np
import pytest

from keras_cdiff.autoencoders import kl_networks


@pytest.mark.parametrize(("factor", "channels"), [(2, 2), (8, 16)])
def test_shapes(factor, channels):
    encoder, decoder = kl_networks(factor, channels, width=16)
    image = keras.KerasTensor((5, 48, 32, 3))
    moments = encoder(image)
    assert moments.shape == (5, 48 // factor, 32 // factor, 2 * channels)
    assert decoder(moments[..., :channels]).shape == image.shape


def test_a_few_hundred_thousand_weights():
    assert sum(network.count_params() for network in kl_networks()) == 387_947


def test_activations_keep_their_scale(smooth_images):
    encoder, decoder = kl_networks(2, 4, 16)
    moments = keras.ops.convert_to_numpy(encoder(smooth_images))
    decoded = keras.ops.convert_to_numpy(decoder(moments[..., :4]))
    assert 0.1 < moments.std() < 3
    assert 0.1 < decoded.std() < 3


def test_weights_are_drawn_by_the_seed():
    def kernel(seed):
        return np.asarray(keras.ops.convert_to_numpy(kl_networks(2, 2, 16, seed)[1].weights[0]))

    np.testing.assert_array_equal(kernel(3), kernel(3))
    assert np.abs(kernel(3) - kernel(4)).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1}, "2, 4, 8 or so on. Received: factor=1"),
        ({"factor": 6}, "Received: factor=6"),
        ({"factor": 4.0}, "Received: factor=4.0"),
        ({"channels": 0}, "2, 4 or more: 1 and 3 are those of images. Received: channels=0"),
        ({"channels": 3}, "Received: channels=3"),
        ({"width": 24}, "a multiple of 16. Received: width=24"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kl_networks(**arguments)

"""Moments, images, fingerprints, and input that is refused."""

import json
import re

import keras
import numpy as np
import pytest

from keras_cdiff.autoencoders import Autoencoder, kl_networks

# Found with TensorFlow, JAX and PyTorch alike.
FINGERPRINT = "6a4d8b3c1a83fff84d75e3b0d6b35e43e0b682834d079ba8361d0cfbd720b3c4"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_moments_are_scaled_and_float32_under_every_policy(linear, smooth_images, policy):
    keras.config.set_dtype_policy(policy)
    # The last log variances are clipped to -30 and 20.
    biases = np.array([0.25, -1, 2, 3, 0, -2, -100, 100], "float32")
    autoencoder = Autoencoder(*linear(biases), scale=0.5, name="kl")
    red = smooth_images[:3, ::2, ::2, :1].astype("float64")
    raw = red + biases
    std = np.exp(np.clip(raw[..., 4:], -30, 20) / 2)
    expected = 0.5 * np.concatenate([raw[..., :4], std], axis=-1)
    actual = autoencoder.moments(smooth_images[:3])
    assert (autoencoder.factor, autoencoder.channels, actual.dtype) == (2, 4, np.float32)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    images = autoencoder.decode(actual[..., :4])
    assert images.dtype == np.float32
    pixels = raw[..., :1].repeat(2, axis=1).repeat(2, axis=2).repeat(3, axis=3)
    np.testing.assert_allclose(images, pixels, rtol=1e-5, atol=1e-6)


def test_the_last_batch_needs_no_graph_of_its_own(linear, smooth_images):
    encoder, decoder = linear(np.zeros(4))
    calls = []

    class Counting(keras.Model):
        def call(self, images, training=False):
            calls.append(images.shape)
            return encoder(images)

    autoencoder = Autoencoder(Counting(), decoder, scale=1.0, name="kl")
    whole = autoencoder.moments(smooth_images[:4])
    calls.clear()
    np.testing.assert_array_equal(autoencoder.moments(smooth_images[:3]), whole[:3])
    # PyTorch calls the network each time.
    assert [tuple(shape) for shape in calls] in ([], [(4, 16, 16, 3)])


def test_it_works_while_another_model_is_trained(small, smooth_images):
    moments = []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: moments.append(small.moments(smooth_images[:2]))
    )
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, verbose=0, callbacks=[callback])
    assert len(moments) == 2
    np.testing.assert_array_equal(*moments)
    assert moments[0].std() > 0


def test_the_fingerprint_is_that_of_kind_weights_and_scale(small):
    assert small.fingerprint() == FINGERPRINT
    networks = small.encoder, small.decoder
    assert Autoencoder(*networks, scale=0.5, name="kl:there").fingerprint() == FINGERPRINT
    others = [
        Autoencoder(*networks, scale=0.25, name="kl"),
        Autoencoder(*networks, scale=0.5, name="mine"),
        Autoencoder(*kl_networks(2, 2, 16, seed=1), scale=0.5, name="kl"),
    ]
    encoder, decoder = kl_networks(2, 2, 16)
    decoder.weights[-1].assign([0, 0, 1e-3])
    others.append(Autoencoder(encoder, decoder, scale=0.5, name="kl"))
    assert len({FINGERPRINT, *(other.fingerprint() for other in others)}) == 5


def test_the_description_is_plain_data(small):
    assert json.loads(json.dumps(small.describe())) == {
        "name": "kl",
        "fingerprint": FINGERPRINT,
        "factor": 2,
        "channels": 2,
        "scale": 0.5,
    }
    assert repr(small) == f"Autoencoder('kl', fingerprint='{FINGERPRINT[:16]}')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[0], "(B, H, W, 3), at least one. Received: images of shape (16, 16"),
        (lambda images: images[:0], "at least one. Received: images of shape (0, 16, 16, 3)"),
        (lambda images: images[..., :1], "Received: images of shape (48, 16, 16, 1)"),
        (lambda images: images[:, :, 1:], "multiples of 2; resize or crop them. Received: images"),
        (lambda images: images.astype("uint8"), "dtype uint8"),
        (lambda images: images * 127.5, "[-1, 1]; bring uint8 images there by x / 127.5 - 1"),
        (lambda images: np.where(images > 0, np.nan, images), "must be finite. Received: images"),
    ],
)
def test_images_that_do_not_suit_are_refused(small, smooth_images, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small.moments(change(smooth_images))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((1, 8, 8, 4), "float32"), "(B, H, W, 2), at least one. Received: latents of"),
        (np.zeros((1, 8, 8, 2), "int32"), "dtype int32"),
        (np.full((1, 8, 8, 2), np.inf), "latents with 128 numbers that are not"),
    ],
)
def test_latents_that_do_not_suit_are_refused(small, latents, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small.decode(latents)


@pytest.mark.parametrize("scale", [0, -1.0, np.inf, np.nan])
def test_the_scale_must_be_positive(small, scale):
    with pytest.raises(ValueError, match=r"positive and finite\. Received: scale="):
        Autoencoder(small.encoder, small.decoder, scale, "kl")


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_with_as_many_channels_as_images_are_refused(linear, channels):
    with pytest.raises(ValueError, match=f"Received: an encoder that gives {2 * channels} chan"):
        Autoencoder(*linear(np.zeros(2 * channels)), 1.0, "kl")


def test_networks_that_do_not_fit_are_refused(small):
    encoder, decoder = kl_networks(4, 2, 16)
    with pytest.raises(ValueError, match=r"and a decoder to \(2, 128, 128, 3\)"):
        Autoencoder(small.encoder, decoder, 1.0, "kl")
    with pytest.raises(ValueError, match="and decoder 'encoder', which say: "):
        Autoencoder(encoder, encoder, 1.0, "kl")

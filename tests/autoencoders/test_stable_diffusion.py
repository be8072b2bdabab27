"""Stable Diffusion's autoencoder: it runs at 256 x 256, is keras-cv's, and says what is missing."""

import hashlib
import importlib
import re
import urllib.error
import urllib.request

import h5py
import keras
import numpy as np
import pytest

from keras_cdiff.autoencoders import open_autoencoder, stable_diffusion
from keras_cdiff.weights.download import RemoteFile, fetch
from keras_cdiff.weights.keras_networks import load_keras_weights

# Found with TensorFlow, JAX and PyTorch alike.
FINGERPRINT = "9c90752d1f2fac8c77d2b31dda3d9317b1e1569510f185c9bbe6450887fc672d"


@pytest.fixture(scope="module")
def built():
    """The autoencoder with drawn weights, opened under another policy, and keras-cv's own encoder
    and decoder, of 64 x 64 pixels, which have its layers and so its weights.
    """
    keras_cv = importlib.import_module("keras_cv.models.stable_diffusion")
    networks = []

    def keep(make):
        def make_and_keep(*args, **kwargs):
            networks.append(make(*args, **kwargs))
            return networks[-1]

        return make_and_keep

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(keras_cv, "ImageEncoder", keep(keras_cv.ImageEncoder))
        monkeypatch.setattr(keras_cv, "Decoder", keep(keras_cv.Decoder))
        keras.config.set_dtype_policy("mixed_bfloat16")
        autoencoder = open_autoencoder("stable_diffusion:random")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        keras.config.set_dtype_policy("float32")
    return autoencoder, *networks


@pytest.mark.one_backend
def test_its_description(built):
    assert built[0].describe() == {
        "name": "stable_diffusion:random",
        "fingerprint": FINGERPRINT,
        "factor": 8,
        "channels": 4,
        "scale": 0.18215,
    }


@pytest.mark.exhaustive
def test_it_runs_at_256_pixels(built):
    autoencoder = built[0]
    images = np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 3)).astype("float32")
    moments = autoencoder.moments(images)
    assert moments.shape == (1, 32, 32, 8)
    decoded = autoencoder.decode(moments[..., :4])
    assert decoded.shape == images.shape
    for values in (moments, decoded):
        assert np.isfinite(values).all()
        assert 0.01 < values.std() < 2


@pytest.mark.one_backend
def test_means_and_images_are_those_of_keras_cv(built):
    autoencoder, encoder, decoder = built
    images = np.random.default_rng(1).uniform(-1, 1, (1, 64, 64, 3)).astype("float32")
    means = autoencoder.moments(images)[..., :4]
    np.testing.assert_allclose(means, encoder.predict(images, verbose=0), rtol=1e-4, atol=1e-5)
    decoded = autoencoder.decode(means)
    np.testing.assert_allclose(decoded, decoder.predict(means, verbose=0), rtol=1e-3, atol=1e-4)


# Weights


def write_legacy(path, network):
    """Writes weights as Keras 2 did: a group a layer, in the order of layers and weights."""
    with h5py.File(path, "w") as file:
        layers = [layer for layer in network.layers if layer.weights]
        file.attrs["layer_names"] = [f"layer_{place}".encode() for place in range(len(layers))]
        for place, layer in enumerate(layers):
            group = file.create_group(f"layer_{place}")
            names = [f"weight_{number}:0".encode() for number in range(len(layer.weights))]
            group.attrs["weight_names"] = names
            for name, values in zip(names, layer.get_weights(), strict=True):
                group[name.decode()] = values


@pytest.fixture
def small_network():
    """A function: channels -> a network of keras-cv's layers, as the encoder begins."""

    def make(channels=32):
        from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
        from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock

        layers = [PaddedConv2D(channels, 3, padding=1), ResnetBlock(64), PaddedConv2D(8, 1)]
        return keras.Sequential([keras.Input((None, None, 3)), *layers], name="encoder")

    return make


def test_files_of_keras_2_are_loaded_by_their_order(small_network, tmp_path):
    saved, loaded = small_network(), small_network()
    for weight in saved.weights:
        weight.assign(np.random.default_rng(0).random(weight.shape, np.float32))
    write_legacy(tmp_path / "vae_encoder.h5", saved)
    load_keras_weights(loaded, tmp_path / "vae_encoder.h5", "the encoder")
    for before, after in zip(saved.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_files_that_are_damaged_or_of_other_networks_are_refused(small_network, tmp_path):
    path = tmp_path / "vae_encoder.h5"
    network = small_network()
    write_legacy(path, small_network(64))
    message = "weights must be those of the encoder: the file is damaged or another network's"
    with pytest.raises(ValueError, match=message):
        load_keras_weights(network, path, "the encoder")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=re.escape(f"Received: path={str(path)!r}")):
        load_keras_weights(network, path, "the encoder")


def test_what_the_system_refuses_is_no_damage(monkeypatch, tmp_path):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(network, "load_weights", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        load_keras_weights(network, tmp_path / "vae_encoder.h5", "the encoder")


def test_a_folder_must_hold_both_files(tmp_path):
    (tmp_path / "vae_encoder.h5").touch()
    with pytest.raises(ValueError, match=r"kcv_decoder.h5, which come from .* without kcv_decod"):
        open_autoencoder(f"stable_diffusion:{tmp_path}")


def test_without_a_connection_the_message_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("KERAS_CDIFF_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"could not be downloaded: .*no network") as raised:
        open_autoencoder("stable_diffusion")
    file = stable_diffusion.FILES[0]
    for needed in (file.url, str(tmp_path / "vae_encoder.h5"), file.sha256):
        assert needed in str(raised.value)


def test_downloads_of_unknown_size_are_checked_by_their_sha256(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"weights")
    url, digest = "https://example.org/weights.h5", hashlib.sha256(b"weights").hexdigest()
    assert fetch(RemoteFile(url, None, digest), tmp_path) == tmp_path / "weights.h5"
    with pytest.raises(ValueError, match=f"has the sha256 {digest}, not 0000"):
        fetch(RemoteFile(url, None, "0" * 64), tmp_path)

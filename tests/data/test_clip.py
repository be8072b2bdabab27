"""CLIP's text encoder: what keras-cv's network gives, and the files it is read from."""

import gzip
import sys

import h5py
import keras
import numpy as np
import pytest

from keras_cdiff.data import text_encoders
from keras_cdiff.data.text_encoders import open_text_encoder

free = pytest.mark.backend_free  # the same on every backend


@pytest.fixture
def vocabulary(tmp_path):
    """A short list of byte pairs, in a folder: a line that is skipped, then the pairs."""
    pairs = ["a t</w>", "c at</w>", "d o", "do g</w>", "b a", "ba r"]
    path = tmp_path / text_encoders.CLIP_VOCABULARY.name
    path.write_bytes(gzip.compress("\n".join(['"bpe"', *pairs]).encode()))
    return path


@pytest.fixture
def two_layers(monkeypatch):
    """keras-cv's network of two of its twelve layers, which are all alike."""
    module = "keras_cv.src.models.stable_diffusion.text_encoder"
    monkeypatch.setattr(f"{module}.range", lambda _: (0, 1), raising=False)


def write_keras_2(path, network):
    """Weights as Keras 2 saved them; of each only one value, so that the file is small."""
    count = 0
    with h5py.File(path, "w") as file:
        layers = [layer for layer in network.layers if layer.weights]
        file.attrs["layer_names"] = [f"layer {n}".encode() for n in range(len(layers))]
        for n, layer in enumerate(layers):
            group = file.create_group(f"layer {n}")
            names = [f"weight {k}" for k in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                count += 1
                group.create_dataset(name, weight.shape, "float32", fillvalue=count)


def tiny_network(max_length, vocab_size, download_weights):
    assert download_weights is False
    tokens, positions = keras.Input((max_length,)), keras.Input((max_length,))
    rows = keras.layers.Embedding(vocab_size, 4)(tokens) + keras.layers.Embedding(77, 4)(positions)
    return keras.Model([tokens, positions], rows)


def test_rows_are_tokens_that_see_those_before_them(two_layers):
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = open_text_encoder("clip:random")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"  # of which nothing is seen here:
    contexts = encoder.encode(["a cat", "a cat is" + " sleeping" * 9])
    assert (contexts.shape, contexts.dtype) == ((2, 77, 768), np.float32)
    assert np.isfinite(contexts).all()
    rows = (contexts != 0).any(axis=-1)
    assert rows.sum(axis=-1).tolist() == [7, 77]  # start, bytes, end
    assert rows[0, :7].all()
    np.testing.assert_allclose(contexts[0, :6], contexts[1, :6], atol=1e-5)
    assert np.abs(contexts[0, 6] - contexts[1, 6]).max() > 0.1
    # The last layer normalises, so that rows have a mean of 0 and a variance of 1.
    np.testing.assert_allclose(contexts[rows].mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(contexts[rows].std(axis=-1), 1, atol=1e-3)
    fingerprint = "e34643af0ad810adbdae22bed9e1b0a3eb10604cb37809c4f8f783f3640a2214"
    assert encoder.fingerprint() == fingerprint


@free
def test_a_folder_of_files_is_read(tmp_path, vocabulary, two_layers):
    from keras_cv.models.stable_diffusion import TextEncoder

    network = TextEncoder(77, 512 + 6 + 2, download_weights=False)
    write_keras_2(tmp_path / text_encoders.CLIP_WEIGHTS.name, network)
    encoder = open_text_encoder(f"clip:{tmp_path}")
    assert encoder.name == f"clip:{tmp_path}"
    identity = sorted(encoder._identity().items())
    arrays = [array for name, array in identity if name.startswith("weights/")]
    assert len(arrays) == 2 + 2 * 16 + 2
    for value, (array, weight) in enumerate(zip(arrays, network.weights, strict=True), start=1):
        assert array.shape == weight.shape
        assert array.flat[0] == value


@free
def test_texts_become_byte_pairs(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr("keras_cv.models.stable_diffusion.TextEncoder", tiny_network)
    write_keras_2(tmp_path / text_encoders.CLIP_WEIGHTS.name, tiny_network(77, 520, False))
    tokenize = open_text_encoder(f"clip:{tmp_path}")._tokenize
    at, cat, do, dog = 512, 513, 514, 515
    start, end = 518, 519
    assert tokenize("CAT  dog\n") == [start, cat, dog, end]
    assert tokenize("at") == [start, at, end]
    assert tokenize("dot")[1] == do
    assert tokenize("cat " * 75) == [start, *[cat] * 75, end]
    assert tokenize("cat " * 80) == [start, *[cat] * 75, end]


@free
def test_the_fingerprint_is_of_vocabulary_and_weights(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr("keras_cv.models.stable_diffusion.TextEncoder", tiny_network)
    write_keras_2(tmp_path / text_encoders.CLIP_WEIGHTS.name, tiny_network(77, 520, False))
    first = open_text_encoder(f"clip:{tmp_path}").fingerprint()
    assert open_text_encoder(f"clip:{tmp_path}").fingerprint() == first
    with h5py.File(tmp_path / text_encoders.CLIP_WEIGHTS.name, "a") as file:
        file["layer 0/weight 0"][3, 2] = 7
    second = open_text_encoder(f"clip:{tmp_path}").fingerprint()
    vocabulary.write_bytes(gzip.compress(gzip.decompress(vocabulary.read_bytes()) + b"x"))
    assert len({first, second, open_text_encoder(f"clip:{tmp_path}").fingerprint()}) == 3


@free
@pytest.mark.parametrize("damaged", [text_encoders.CLIP_WEIGHTS, text_encoders.CLIP_VOCABULARY])
def test_damaged_and_missing_files_are_named(tmp_path, vocabulary, monkeypatch, damaged):
    monkeypatch.setattr("keras_cv.models.stable_diffusion.TextEncoder", tiny_network)
    write_keras_2(tmp_path / text_encoders.CLIP_WEIGHTS.name, tiny_network(77, 520, False))
    path = tmp_path / damaged.name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{damaged.url}.*{damaged.name}"):
        open_text_encoder(f"clip:{tmp_path}")
    path.unlink()
    with pytest.raises(ValueError, match=rf"it lacks {damaged.name}\. Received: folder="):
        open_text_encoder(f"clip:{tmp_path}")


@free
def test_weights_of_another_vocabulary_are_refused(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr("keras_cv.models.stable_diffusion.TextEncoder", tiny_network)
    write_keras_2(tmp_path / text_encoders.CLIP_WEIGHTS.name, tiny_network(77, 521, False))
    with pytest.raises(ValueError, match="a row for each token of the vocabulary"):
        open_text_encoder(f"clip:{tmp_path}")


@free
def test_without_a_connection_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_CDIFF_CACHE", str(tmp_path))
    unreachable = text_encoders.CLIP_VOCABULARY._replace(
        url="http://127.0.0.1:9/bpe_simple_vocab_16e6.txt.gz"
    )
    monkeypatch.setattr(text_encoders, "CLIP_VOCABULARY", unreachable)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ValueError, match=r"could not be downloaded.*on another machine"):
        open_text_encoder("clip")


@free
def test_without_keras_cv_the_message_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "keras_cv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install keras-cdiff\[latent\]"):
        open_text_encoder("clip")


@free
def test_published_files():
    assert text_encoders.CLIP_WEIGHTS.name == "kcv_encoder.h5"
    assert text_encoders.CLIP_VOCABULARY.name == "bpe_simple_vocab_16e6.txt.gz"
    for remote in (text_encoders.CLIP_WEIGHTS, text_encoders.CLIP_VOCABULARY):
        assert remote.url.startswith("https://")
        assert len(bytes.fromhex(remote.sha256)) == 32

"""Text encoders: BERT as its authors' code computes it, and what every encoder must do."""

import json
import struct
import sys

import keras
import numpy as np
import pytest

from keras_cdiff.data.text import TextEncoder
from keras_cdiff.data.text_encoders import open_minilm, open_text_encoder

free = pytest.mark.backend_free  # no network runs

QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("bert").folder("weights")


@pytest.fixture(scope="module")
def path(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "bert.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def encoder(path):
    return open_text_encoder(f"minilm:{path}")


@pytest.fixture
def changed(arrays, tmp_path):
    """A function: arrays that differ, None for those left out -> the path of such a file."""

    def write(**changes):
        kept = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
        np.savez(tmp_path / "bert.npz", **kept)
        return tmp_path / "bert.npz"

    return write


def write_safetensors(path, arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        span = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F16", "shape": array.shape, "data_offsets": span}
        data += array.tobytes()
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


# BERT


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_bert_is_that_of_its_authors_under_every_policy(golden, path, policy):
    file = golden("bert")
    keras.config.set_dtype_policy(policy)
    contexts = open_minilm(path, max_length=40).encode(file["in/texts"].tolist())
    assert (contexts.shape, contexts.dtype) == ((3, 40, 64), np.float32)
    expected, mask = file["out/last_hidden_state"], file["in/mask"]
    np.testing.assert_allclose(contexts[:, : mask.shape[1]][mask], expected[mask], atol=1e-5)
    assert not contexts[:, : mask.shape[1]][~mask].any()
    assert not contexts[:, mask.shape[1] :].any()


def test_texts_are_encoded_alike_in_any_company(encoder):
    texts = ["a cat", "", "the red apple, and the dog on a table", " \n", "a cat", "a " * 40]
    contexts = encoder.encode(texts)
    assert (contexts.shape, contexts.dtype) == ((6, 32, 64), np.float32)
    rows = (contexts != 0).any(axis=-1)
    assert rows.sum(axis=-1).tolist() == [4, 0, 12, 0, 4, 32]
    assert not (np.diff(rows.astype(int), axis=-1) > 0).any()  # tokens come first
    np.testing.assert_allclose(encoder.encode(texts[::-1], batch_size=2)[::-1], contexts, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["a " * 30])[0], contexts[5], atol=1e-5)  # cut
    assert encoder.encode([]).shape == (0, 32, 64)
    assert not np.allclose(contexts[0], contexts[2])


@free
def test_what_an_encoder_says_of_itself(encoder, path):
    # Of the weights and the tokenizer, so it is the same on every backend and machine.
    fingerprint = "96d31bb80a10497c4ea3c981bf10ee0e5d4a11ea8dc30a0c5d7d03c57e36e064"
    assert encoder.describe() == {
        "name": f"minilm:{path}",
        "fingerprint": fingerprint,
        "width": 64,
        "max_length": 32,
    }
    assert open_text_encoder(f"minilm:{path}", fingerprint).fingerprint() == fingerprint
    with pytest.raises(ValueError, match=rf"same text encoder.* 0123, this one {fingerprint}"):
        open_text_encoder(f"minilm:{path}", "0123")


@free
def test_the_fingerprint_tells_encoders_apart(encoder, path, arrays, changed):
    assert open_minilm(path, max_length=31).fingerprint() != encoder.fingerprint()
    other = open_minilm(changed(**{QUERY: arrays[QUERY] + np.float16(1)}))
    assert other.fingerprint() != encoder.fingerprint()
    tokenizer = np.append(arrays["tokenizer.json"], np.uint8(ord(" ")))
    other = open_minilm(changed(**{"tokenizer.json": tokenizer}))
    assert other.fingerprint() != encoder.fingerprint()
    # What the network does not use does not count.
    other = open_minilm(changed(**{"pooler.dense.bias": np.zeros(64, np.float32)}))
    assert other.fingerprint() == encoder.fingerprint()


@free
def test_a_folder_of_hugging_face_is_the_same_encoder(encoder, arrays, tmp_path):
    with pytest.raises(ValueError, match=r"lacks model.safetensors, tokenizer.json\. Received"):
        open_minilm(tmp_path)
    weights = {k: v for k, v in arrays.items() if k != "tokenizer.json"}
    write_safetensors(tmp_path / "model.safetensors", weights)
    (tmp_path / "tokenizer.json").write_bytes(arrays["tokenizer.json"].tobytes())
    assert open_minilm(tmp_path).fingerprint() == encoder.fingerprint()


@free
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERY: None}, rf"lack {QUERY}\. Received: path="),
        ({QUERY: np.zeros((64, 32))}, rf"{QUERY} must have the shape \(64, 64\).*\(64, 32\)"),
        ({"embeddings.word_embeddings.weight": None}, "lack embeddings.word_embeddings.weight"),
        ({"embeddings.word_embeddings.weight": np.zeros((7, 64))}, "44 tokens, the weights 7"),
        ({"tokenizer.json": None}, "bytes of its tokenizer.json.*Received: path="),
        ({"tokenizer.json": np.frombuffer(b"{}", np.uint8)}, "that the package tokenizers reads"),
    ],
)
def test_a_file_that_is_no_bert_is_refused(changed, changes, message):
    with pytest.raises(ValueError, match=message):
        open_minilm(changed(**changes))


@free
def test_a_file_of_something_else_is_refused(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **{"tokenizer.json": arrays["tokenizer.json"]})
    with pytest.raises(ValueError, match=r"lack embeddings.* and \d+ more\. Received: path="):
        open_minilm(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="no such file"):
        open_minilm(tmp_path / "b.npz")


@free
@pytest.mark.parametrize("max_length", [1, 41])
def test_a_length_that_does_not_fit_is_refused(path, max_length):
    with pytest.raises(ValueError, match=rf"\[2, 40\]. Received: max_length={max_length}"):
        open_minilm(path, max_length)


@free
def test_without_tokenizers_the_message_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install keras-cdiff\[text\]"):
        open_minilm(path)


# every encoder


@free
@pytest.mark.parametrize("name", ["", "minilm", "minilm:", "clip:", "clipper", "bert:x", None])
def test_an_unknown_encoder_is_named(name):
    with pytest.raises(ValueError, match=r"minilm:PATH, clip, clip:FOLDER or clip:random") as error:
        open_text_encoder(name)
    assert str(error.value).endswith(f"Received: name={name!r}")


@free
@pytest.mark.parametrize("texts", ["a cat", ["a", None], [b"a"], [1]])
def test_what_is_no_list_of_texts_is_refused(encoder, texts):
    with pytest.raises(ValueError, match=r"list of strings.*Received: texts="):
        encoder.encode(texts)


@free
def test_batches_hold_texts_of_like_lengths_and_few_shapes():
    shapes = []

    class Network(keras.Model):
        def call(self, inputs):
            tokens, present = inputs
            shapes.append(tuple(tokens.shape))
            return keras.ops.cast(keras.ops.where(present, tokens, 9)[..., None], "float32")

    encoder = TextEncoder(
        "ones", Network(), lambda text: [1] * len(text), width=1, max_length=12, identity=dict
    )
    texts = ["x" * n for n in (11, 1, 12, 3, 2, 8, 1)]
    contexts = encoder.encode(texts, batch_size=2)
    assert contexts.sum(axis=(1, 2)).tolist() == [11, 1, 12, 3, 2, 8, 1]
    assert set(shapes) == {(2, 8), (2, 12)}

"""Captions embedded once, read from disk beside the images."""

import copy
import json

import numpy as np
import pytest

from keras_cdiff.common.files import FolderLock
from keras_cdiff.data import ArraySource, captions, open_source
from keras_cdiff.data.captions import (
    CaptionEmbeddings,
    WithContext,
    caption_folder,
    embed_captions,
)

pytestmark = pytest.mark.backend_free

TEXTS = [["a cat", "asleep"], ["a dog", ""], ["", ""], ["a cat", "a dog barks"]]


class LetterEncoder:
    """A row a letter, up to five; it keeps count of the texts it has seen."""

    name, width, max_length = "letters", 3, 5

    def __init__(self, scale=1.0):
        self.scale, self.seen = scale, []

    def encode(self, texts, batch_size=64):
        self.seen += texts
        contexts = np.zeros((len(texts), 5, 3), np.float32)
        for context, text in zip(contexts, texts, strict=True):
            for row, letter in zip(context, text, strict=False):
                row[:] = np.sin(ord(letter) * np.array([1, 2, 3])) * self.scale
        return contexts

    def fingerprint(self):
        return f"{self.scale}".rjust(64, "0")

    def describe(self):
        sizes = {"width": self.width, "max_length": self.max_length}
        return {"name": self.name, "fingerprint": self.fingerprint(), **sizes}


def images(count):
    return np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)


@pytest.fixture
def source():
    return ArraySource("four", images(4), np.array([0, 1, 1, 0]), np.array(TEXTS))


def embed(source, encoder, folder, **options):
    return embed_captions(source, encoder, folder, progress=False, **options)


def test_what_is_read_is_what_was_encoded(source, tmp_path):
    encoder = LetterEncoder()
    embeddings = embed(source, encoder, tmp_path)
    assert len(embeddings) == 4
    assert [len(contexts) for contexts in embeddings] == [2, 1, 1, 2]
    assert embeddings.encoder == encoder.describe()
    for contexts, texts in zip(embeddings, source.captions(), strict=True):
        assert all(context.dtype == np.float32 for context in contexts)
        np.testing.assert_allclose(contexts, encoder.encode(texts), rtol=1e-3)
    assert not embeddings[2][0].any()  # the null text
    for index in (-1, 4):
        with pytest.raises(IndexError, match=rf"4 examples. Received: index={index}"):
            embeddings[index]


def test_each_caption_is_encoded_once(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(captions, "_BATCHES", 2)
    encoder = LetterEncoder()
    whole = embed_captions(source, encoder, tmp_path / "text", batch_size=1)
    assert encoder.seen == ["a cat", "asleep", "a dog", "", "a dog barks"]
    assert "5/5" in capsys.readouterr().out
    again = embed(source, encoder, tmp_path / "text")
    assert len(encoder.seen) == 5
    assert again.folder == whole.folder
    # In one block they come out the same, to the byte.
    other = embed(source, encoder, tmp_path / "other")
    for path in whole.folder.iterdir():
        assert path.read_bytes() == (other.folder / path.name).read_bytes()
    assert np.load(whole.folder / "tokens.npy").shape == (20, 3)  # no row twice, none of padding


def test_another_encoder_and_other_captions_lie_elsewhere(source, tmp_path):
    reversed_texts = np.array(TEXTS[::-1])
    for scale, texts in [(1.0, TEXTS), (2.0, TEXTS), (1.0, reversed_texts)]:
        embed(ArraySource("x", images(4), None, np.array(texts)), LetterEncoder(scale), tmp_path)
    names = {path.name for path in tmp_path.iterdir()} - {"lock"}
    assert len(names) == 3
    assert all(name.startswith("text-") and len(name) == 21 for name in names)


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "captions.npy", "examples.npy"])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_damage_is_found(source, tmp_path, name, damage):
    path = embed(source, LetterEncoder(), tmp_path).folder / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        cut = content[:-1]
        path.write_bytes(cut if damage == "cut" else cut + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"damaged.*: remove the folder.*Received.*{name} is "):
        embed(source, LetterEncoder(), tmp_path)


@pytest.mark.parametrize("change", [{"format": 2}, {"encoder": None}, None])
def test_an_index_that_cannot_be_read_is_damage(source, tmp_path, change):
    path = embed(source, LetterEncoder(), tmp_path).folder / "index.json"
    index = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps({**index, **change}))
    with pytest.raises(ValueError, match=r"damaged.*: remove the folder.*Received: folder="):
        CaptionEmbeddings(path.parent)


def test_large_files_are_read_through_when_asked_to(source, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "_CHECKED_BYTES", 100)
    path = embed(source, LetterEncoder(), tmp_path).folder / "tokens.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    CaptionEmbeddings(path.parent)
    with pytest.raises(ValueError, match=r"damaged.*tokens\.npy is not what was written"):
        CaptionEmbeddings(path.parent, read_all=True)
    path.write_bytes(content)
    CaptionEmbeddings(path.parent, read_all=True)


def test_what_the_system_refuses_is_no_damage(source, tmp_path, monkeypatch):
    path = embed(source, LetterEncoder(), tmp_path).folder

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        CaptionEmbeddings(path)


def test_what_a_killed_process_left_is_removed(source, tmp_path):
    for name in ("writing-abc", "other-writing-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.npy").touch()
    found = embed(source, LetterEncoder(), tmp_path).folder.name
    assert {path.name for path in tmp_path.iterdir()} == {found, "other-writing-abc", "lock"}


def test_two_processes_do_not_embed_the_same_captions(source, tmp_path):
    encoder = LetterEncoder()
    (tmp_path / "writing-abc").mkdir()  # of the other process
    with (
        FolderLock(tmp_path, "first", "in use"),
        pytest.raises(ValueError, match="by another process: wait"),
    ):
        embed(source, encoder, tmp_path)
    assert encoder.seen == []
    assert (tmp_path / "writing-abc").exists()
    embed(source, encoder, tmp_path)
    with FolderLock(tmp_path, "first"):  # what is there is read all the same
        embed(source, encoder, tmp_path)
    assert len(encoder.seen) == 5


@pytest.mark.parametrize("scale", [1e6, np.nan])
def test_numbers_beyond_float16_are_refused_and_nothing_is_left(source, tmp_path, scale):
    with pytest.raises(ValueError, match=r"finite in float16.*Received: values up to"):
        embed(source, LetterEncoder(scale), tmp_path / "text")
    assert [path.name for path in (tmp_path / "text").iterdir()] == ["lock"]


def test_a_source_without_captions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.csv.*Received: source='bare'"):
        embed(ArraySource("bare", images(2)), LetterEncoder(), tmp_path)


def test_captions_that_are_all_empty_are_null_texts(tmp_path):
    source = ArraySource("x", images(2), None, np.array(["", ""]))
    assert not np.any(embed(source, LetterEncoder(), tmp_path)[1])


def test_emoji_have_captions(tmp_path):
    source = open_source("emoji")
    embeddings = embed(source, LetterEncoder(), tmp_path)
    place = source.captions().index(("otter",))
    np.testing.assert_allclose(embeddings[place], LetterEncoder().encode(["otter"]), rtol=1e-3)


def test_a_source_with_contexts(source, tmp_path):
    embeddings = embed(source, LetterEncoder(), tmp_path)
    wrapped = WithContext(source, embeddings)
    assert len(wrapped) == 4
    assert (wrapped.name, wrapped.num_classes, wrapped.class_names) == ("four", 2, ())
    assert wrapped.has_captions
    assert wrapped.labels().tolist() == [0, 1, 1, 0]
    assert wrapped.captions() == source.captions()
    assert wrapped.digest() == source.digest()
    assert set(wrapped[0]) == {"image", "label", "caption", "contexts"}
    assert [len(example["contexts"]) for example in wrapped] == [2, 1, 1, 2]
    for caption, context in enumerate(embeddings[3]):
        assert (context.shape, context.dtype) == ((5, 3), np.float32)
        np.testing.assert_array_equal(wrapped[3]["contexts"][caption], context)
    assert "four" in repr(wrapped)
    assert "letters" in repr(wrapped)
    assert copy.copy(wrapped).name == "four"
    with pytest.raises(AttributeError, match="latent"):
        _ = wrapped.latent_size
    with pytest.raises(ValueError, match=r"embeddings of 4 examples, source="):
        WithContext(ArraySource("two", images(2)), embeddings)


def test_embeddings_lie_beside_the_data(tmp_path, monkeypatch):
    fallback = tmp_path / "run"
    (tmp_path / "photos").mkdir()
    for name, folder in [
        (f"npz:{tmp_path}/a.npz", tmp_path / "a.npz.text"),
        (f"folder:{tmp_path}/photos", tmp_path / "photos.text"),
        (f"folder:{tmp_path}/photos/", tmp_path / "photos.text"),
        (f"latents:{tmp_path}/photos", tmp_path / "photos" / "text"),
        ("emoji", fallback),
        ("tfds:coco_captions:val", fallback),
        (f"npz:{tmp_path}/not/there/a.npz", fallback),
    ]:
        assert caption_folder(name, fallback) == folder
    monkeypatch.chdir(tmp_path / "photos")
    assert caption_folder("folder:.", fallback) == tmp_path / "photos.text"
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for a folder of another's
    assert caption_folder(f"npz:{tmp_path}/a.npz", fallback) == fallback

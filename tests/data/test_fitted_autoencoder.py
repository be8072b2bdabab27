"""An autoencoder is fitted once, to what was asked for, and kept beside the latents."""

import functools
import json

import numpy as np
import pytest

from keras_cdiff.autoencoders import Autoencoder, kl_networks, open_autoencoder
from keras_cdiff.common.files import FolderLock, file_digest
from keras_cdiff.common.store import write_json
from keras_cdiff.data import ArraySource, latent_writer
from keras_cdiff.data.latent_writer import IN_USE, _request, check_store

pytestmark = pytest.mark.backend_free


@functools.cache
def networks(seed):
    return kl_networks(factor=2, channels=2, width=16, seed=seed)


@pytest.fixture
def fits(monkeypatch):
    """The seeds of the fits that were made; they take no time, and give drawn weights."""
    seeds = []

    def fit(images, steps, seed):
        seeds.append(seed)
        assert next(iter(images))["image"].shape == (3, 8, 8, 3)
        return Autoencoder(*networks(seed), 0.5, "kl")

    monkeypatch.setattr(latent_writer, "fit_autoencoder", fit)
    return seeds


def pictures(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (3, 8, 8, 3), np.uint8)
    return ArraySource("pictures", images)


def fitted(folder, source=None, image_size=8, **options):
    options = {"steps": 5, "seed": 1, "shard_size": 4, **options}
    return latent_writer.fitted_autoencoder(source or pictures(), image_size, folder, **options)


def test_it_is_fitted_once(fits, tmp_path):
    first = fitted(tmp_path / "store")
    assert first.name == f"kl:{tmp_path / 'store' / 'autoencoder'}"
    assert fitted(tmp_path / "store").fingerprint() == first.fingerprint()
    assert fits == [1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("source_digest", {"source": pictures(1)}),
        ("image_size", {"image_size": 16}),
        ("steps", {"steps": 6}),
        ("seed", {"seed": 2}),
        ("mirrored", {"mirrored": False}),
    ],
)
def test_that_of_another_fit_is_refused(fits, tmp_path, name, options):
    fitted(tmp_path)
    message = rf"choose another folder, by --output, .*kl:{tmp_path}/autoencoder\..* {name}=.*there"
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, **options)
    assert fits == [1]


@pytest.mark.parametrize("damage", [None, "{", "[]", '{"seed": 1}'])
def test_one_of_which_nothing_is_known_is_refused(fits, tmp_path, damage):
    fitted(tmp_path)
    path = tmp_path / "autoencoder_request.json"
    path.unlink()
    if damage is not None:
        path.write_text(damage)
    with pytest.raises(ValueError, match=r"not fitted by this request.*which cannot be read"):
        fitted(tmp_path)


def test_an_interrupted_fit_begins_anew(fits, tmp_path, monkeypatch):
    def interrupted(self, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Autoencoder, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path)
    fitted(tmp_path, seed=2)  # what was not finished binds nobody
    assert fits == [1, 2]
    assert json.loads((tmp_path / "autoencoder_request.json").read_text())["seed"] == 2


def test_nothing_is_fitted_for_a_folder_of_others(fits, tmp_path):
    other = Autoencoder(*kl_networks(2, 2, 16), 0.5, "stable_diffusion:random")
    request = _request(pictures(), 8, True, 4, other)
    write_json(tmp_path / "progress.json", {**request, "shards": []})
    with pytest.raises(ValueError, match=r"another request: choose another folder.*autoencoder="):
        fitted(tmp_path)
    with pytest.raises(ValueError, match=r"another request: choose another folder.*shard_size=5"):
        fitted(tmp_path, shard_size=5)
    with (
        FolderLock(tmp_path / "new", IN_USE, "in use"),
        pytest.raises(ValueError, match="written there by another process"),
    ):
        fitted(tmp_path / "new")
    assert fits == []


def test_the_copy_in_a_store_is_checked(fits, tmp_path):
    autoencoder = fitted(tmp_path)
    moments = np.zeros((3, 1, 4, 4, 4), "<f2")
    np.save(tmp_path / "moments-00000.npy", moments)
    request = _request(pictures(), 8, False, 4, autoencoder)
    digest = file_digest(tmp_path / "moments-00000.npy")
    shards = [{"file": "moments-00000.npy", "count": 3, "sha256": digest}]
    parts = {"shards": shards, "labels": None, "captions": None}
    write_json(tmp_path / "index.json", {**request, **parts})
    assert check_store(tmp_path) == {"images": 3, "embeddings": 0, "autoencoders": 1}
    other = open_autoencoder(autoencoder.name)
    other.encoder.weights[0].assign(other.encoder.weights[0] + 1)
    (tmp_path / "autoencoder").rename(tmp_path / "old")
    other.save(tmp_path / "autoencoder")
    with pytest.raises(ValueError, match="autoencoder"):
        check_store(tmp_path)

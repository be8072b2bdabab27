"""Autoencoders by name: saved and opened again, and refused where they are others."""

import json
import re
import sys

import numpy as np
import pytest

from keras_cdiff.autoencoders import Autoencoder, open_autoencoder


@pytest.fixture
def folder(small, tmp_path):
    """A folder that holds an autoencoder."""
    small.save(tmp_path / "runs" / "autoencoder")
    return tmp_path / "runs" / "autoencoder"


def test_what_was_saved_is_opened(small, folder, smooth_images):
    opened = open_autoencoder(f"kl:{folder}", small.fingerprint())
    assert opened.kind == "kl"
    assert opened.describe() == {**small.describe(), "name": f"kl:{folder}"}
    moments = small.moments(smooth_images[:4])
    np.testing.assert_array_equal(opened.moments(smooth_images[:4]), moments)
    np.testing.assert_array_equal(opened.decode(moments[..., :2]), small.decode(moments[..., :2]))
    opened.save(folder.parent / "copy")
    for file in ("autoencoder.json", "weights.npz"):
        assert (folder.parent / "copy" / file).read_bytes() == (folder / file).read_bytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["autoencoder", "copy"]


def test_a_folder_with_something_in_it_is_left_alone(small, folder):
    with pytest.raises(ValueError, match=r"missing or empty\. Received: folder="):
        small.save(folder)


def test_only_small_networks_are_saved(small, linear, tmp_path):
    other = Autoencoder(small.encoder, small.decoder, 1.0, "stable_diffusion:random")
    with pytest.raises(ValueError, match="Received: an autoencoder 'stable_diffusion:random'"):
        other.save(tmp_path / "saved")
    foreign = Autoencoder(*linear(np.zeros(32)), 1.0, "kl")
    with pytest.raises(ValueError, match="Only networks of kl_networks can be saved"):
        foreign.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_another_fingerprint_is_refused(small, folder):
    with pytest.raises(ValueError, match="must come from the same autoencoder") as raised:
        open_autoencoder(f"kl:{folder}", "0123456789abcdef" * 4)
    for part in ("begins with 0123456789abcdef. ", small.fingerprint()[:16], str(folder)):
        assert part in str(raised.value)


def change_description(folder, **changes):
    path = folder / "autoencoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder, change):
    with np.load(folder / "weights.npz") as file:
        weights = dict(file)
    change(weights)
    np.savez(folder / "weights.npz", **weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_description(f, scale=0.6), "its weights are not those that were saved"),
        (lambda f: change_description(f, format=2), "its format is 2, not 1"),
        (lambda f: change_description(f, width=32), "encoder_000 has the shape"),
        (lambda f: (f / "autoencoder.json").write_text("{"), "damaged, or of another version"),
        (lambda f: (f / "autoencoder.json").unlink(), "no autoencoder, for want of"),
        (lambda f: (f / "weights.npz").write_bytes(b"PK"), "damaged, or of another version"),
        (lambda f: change_weights(f, lambda w: w["decoder_000"].fill(0)), "not those that were"),
        (lambda f: change_weights(f, lambda w: w.pop("decoder_000")), "decoder_000"),
    ],
)
def test_damage_is_found(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        open_autoencoder(f"kl:{folder}")
    assert f"Received: folder={str(folder)!r}" in str(raised.value)


def test_what_the_system_refuses_is_no_damage(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        open_autoencoder(f"kl:{folder}")


@pytest.mark.parametrize("name", ["vae", "kl", "kl:", "stable_diffusion:", "", "Stable_diffusion"])
def test_unknown_names_are_refused(name):
    names = "stable_diffusion, stable_diffusion:FOLDER, stable_diffusion:random or kl:FOLDER"
    with pytest.raises(ValueError, match=re.escape(f"{names}. Received: name={name!r}")):
        open_autoencoder(name)


def test_without_keras_cv_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv.models.stable_diffusion", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install keras-cdiff\[latent\]"):
        open_autoencoder("stable_diffusion:random")

"""Presets: the published networks and training settings, as far as they have been published."""

import inspect

import keras
import numpy as np
import pytest

from keras_cdiff import backbones, presets
from keras_cdiff.diffusion_model import DiffusionModel

pytestmark = pytest.mark.backend_free

# Counted in the official code.
PARAMETERS = {
    "edm_ddpmpp_cifar10": 55_733_891,
    "edm_ddpmpp_cifar10_cond": 55_735_299,
    "edm_ncsnpp_cifar10": 56_397_827,
    "edm_ncsnpp_cifar10_cond": 56_400_643,
    "edm_ddpmpp_ffhq64": 61_805_571,
    "edm_adm_imagenet64": 295_899_267,
}


def network(config):
    config = dict(config["model"]["backbone"])
    return getattr(backbones, config.pop("class_name"))(**config)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_networks_have_their_number_of_parameters(name):
    # No memory is allocated: variables that a stateless scope does not initialise have only shapes.
    with keras.StatelessScope(initialize_variables=False):
        weights = network(presets.preset(name)).trainable_weights
    assert sum(int(np.prod(weight.shape)) for weight in weights) == PARAMETERS[name]
    keras.utils.clear_session()


@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_parts_of_every_preset_fit(name):
    model = presets.preset(name)["model"]
    # The network made small, since its size is not what must fit.
    small = {"DiT": {"width": 16, "depth": 1, "num_heads": 2}}.get(
        model["backbone"]["class_name"], {"width": 64, "num_blocks": 1, "embedding_multiplier": 1}
    )
    built = DiffusionModel.from_preset(name, **small)
    given = inspect.signature(type(built.backbone)).parameters
    assert set(model["backbone"]) - {"class_name"} <= set(given)
    assert built.get_config()["schedule"]["config"] == model["schedule"]["config"]
    assert (built.augmentation is None) == (model.get("augmentation") is None)


@pytest.mark.parametrize(
    ("name", "images", "batch_size"),
    [
        ("edm_ddpmpp_cifar10", 200e6, 512),
        ("edm_ncsnpp_cifar10_cond", 200e6, 512),
        ("edm_ddpmpp_ffhq64", 200e6, 256),
        ("edm_adm_imagenet64", 2.5e9, 4096),
    ],
)
def test_edm_counts_in_images(name, images, batch_size):
    training = presets.preset(name)["training"]
    assert training["batch_size"] == batch_size
    assert training["steps"] * batch_size == pytest.approx(images, rel=1e-5)
    assert training["warmup_steps"] * batch_size == pytest.approx(10e6, rel=1e-3)


def test_a_preset_is_a_copy():
    presets.preset("edm_ddpmpp_cifar10")["model"]["backbone"]["width"] = 1
    assert presets.preset("edm_ddpmpp_cifar10")["model"]["backbone"]["width"] == 128
    # Presets that share settings do not share them as objects.
    assert presets.preset("edm_ddpmpp_cifar10_cond")["model"]["backbone"]["width"] == 128


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"edm_emoji16.*Received: name='edm'"):
        presets.preset("edm")

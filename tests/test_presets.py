"""Presets: the published networks and training settings, as far as they have been published."""

import inspect

import keras
import numpy as np
import pytest

from keras_cdiff import backbones, presets
from keras_cdiff.model.diffusion_model import DiffusionModel

backend_free = pytest.mark.backend_free

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


@backend_free
@pytest.mark.parametrize("name", PARAMETERS)
def test_published_networks_have_their_number_of_parameters(name):
    # No memory is allocated: variables that a stateless scope does not initialise have only shapes.
    with keras.StatelessScope(initialize_variables=False):
        weights = network(presets.preset(name)).trainable_weights
    assert sum(int(np.prod(weight.shape)) for weight in weights) == PARAMETERS[name]
    keras.utils.clear_session()


# The networks made small, since their size is not what must fit.
SMALL_DIT = {"width": 16, "depth": 1, "num_heads": 2}
SMALL_UNET = {"width": 64, "num_blocks": 1, "embedding_multiplier": 1}
SMALLEST_UNET = {**SMALL_UNET, "channel_multipliers": [1, 1], "attention_resolutions": []}


@backend_free
@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_parts_of_every_preset_fit(name):
    is_dit = presets.preset(name)["model"]["backbone"]["class_name"] == "DiT"
    with keras.StatelessScope(initialize_variables=False):  # no weight is drawn
        check_parts_fit(name, SMALL_DIT if is_dit else SMALL_UNET)


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("sit_emoji16", SMALL_DIT),
        ("edm_emoji16", SMALLEST_UNET),
        ("edm_ddpmpp_cifar10", SMALLEST_UNET),
        ("edm_ncsnpp_cifar10_cond", SMALLEST_UNET),
        ("edm_adm_imagenet64", SMALLEST_UNET),
    ],
)
def test_presets_are_built_on_every_backend(name, small):
    check_parts_fit(name, small)


def check_parts_fit(name, small):
    model = presets.preset(name)["model"]
    built = DiffusionModel.from_preset(name, **small)
    given = inspect.signature(type(built.backbone)).parameters
    assert set(model["backbone"]) - {"class_name"} <= set(given)
    assert built.get_config()["schedule"]["config"] == model["schedule"]["config"]
    assert (built.augmentation is None) == (model.get("augmentation") is None)


@backend_free
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


# Table 7 of EDM and its appendix F: learning rate, dropout, half-life of the average, augmentation,
# steps of the sampler.
PUBLISHED = {
    "edm_ddpmpp_cifar10": (1e-3, 0.13, 500_000, 0.12, 18),
    "edm_ddpmpp_cifar10_cond": (1e-3, 0.13, 500_000, 0.12, 18),
    "edm_ncsnpp_cifar10": (1e-3, 0.13, 500_000, 0.12, 18),
    "edm_ncsnpp_cifar10_cond": (1e-3, 0.13, 500_000, 0.12, 18),
    "edm_ddpmpp_ffhq64": (2e-4, 0.05, 500_000, 0.15, 40),
    "edm_adm_imagenet64": (1e-4, 0.10, 50e6, None, 256),
}
CHURN = {"s_churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}


@backend_free
@pytest.mark.parametrize("name", PUBLISHED)
def test_edm_has_its_published_settings(name):
    learning_rate, dropout, halflife, augment, steps = PUBLISHED[name]
    config = presets.preset(name)
    model, training, sampling = config["model"], config["training"], config["sampling"]
    assert training["learning_rate"] == learning_rate
    assert training["learning_rate_schedule"] == "constant"
    assert training["weight_decay"] == 0.0
    assert model["backbone"]["dropout"] == dropout
    assert model["ema"]["class_name"] == "WarmupDecay"
    assert model["ema"]["config"] == {"halflife": halflife, "rampup": 0.05}
    augmentation = model["augmentation"]
    assert (augmentation and augmentation["config"]) == (augment and {"probability": augment})
    assert model["backbone"].get("augment_features", 0) == (9 if augment else 0)
    assert model["parameterization"]["class_name"] == "EDMPreconditioning"
    assert model["parameterization"]["config"] == {"sigma_data": 0.5}
    density = model["objective"]
    assert density["class_name"] == "LogNormalSigma"
    assert (density["config"]["p_mean"], density["config"]["p_std"]) == (-1.2, 1.2)
    assert density["config"]["weighting"]["class_name"] == "EDMWeight"
    assert density["config"]["weighting"]["config"] == {"sigma_data": 0.5}
    assert model["schedule"]["config"] == {"sigma_min": 0.002, "sigma_max": 80.0}
    assert (sampling["sampler"], sampling["num_steps"], sampling["guidance"]) == ("heun", steps, 1)
    assert sampling.get("options", {}) == (CHURN if name == "edm_adm_imagenet64" else {})


@backend_free
def test_a_preset_is_a_copy():
    presets.preset("edm_ddpmpp_cifar10")["model"]["backbone"]["width"] = 1
    assert presets.preset("edm_ddpmpp_cifar10")["model"]["backbone"]["width"] == 128
    # Presets that share settings do not share them as objects.
    assert presets.preset("edm_ddpmpp_cifar10_cond")["model"]["backbone"]["width"] == 128


@backend_free
def test_unknown_preset():
    with pytest.raises(ValueError, match=r"edm_emoji16.*Received: name='edm'"):
        presets.preset("edm")

"""Models worth exporting, and what reads an export."""

import re

import keras
import numpy as np
import pytest

from keras_cdiff import DiffusionModel, export_sampler, parameterizations, samplers


def randomise(model):
    """Gives the raw and the averaged network weights of their own: answers of size one, that depend
    on the label.
    """
    generator = np.random.default_rng(0)
    for network in (model.backbone, model.ema_backbone):
        for weight in network.weights:
            if "kernel" in weight.path:
                weight.assign(0.5 * generator.normal(size=weight.shape) / np.sqrt(weight.shape[-2]))
            elif "embeddings" in weight.path:
                weight.assign(generator.normal(size=weight.shape))
    model.iteration.assign(12)
    return model


@pytest.fixture(scope="package")
def models(make_model):
    """By name, a DiT on timesteps, one that learns variances, and EDM's U-Net of one level, for
    images of 8 x 8 pixels.
    """
    keras.utils.set_random_seed(0)
    velocity, learned = (
        parameterizations.Velocity(),
        parameterizations.Velocity(learned_variance=True),
    )
    unet = DiffusionModel.from_preset(
        "edm_emoji16",
        image_size=8,
        width=8,
        num_blocks=1,
        num_classes=3,
        channel_multipliers=(1,),
    )
    networks = {
        "dit": make_model("ddpm", parameterization=velocity, depth=1),
        "learned": make_model("ddpm", parameterization=learned, depth=1),
        "edm": unet,
    }
    return {name: randomise(model) for name, model in networks.items()}


@pytest.fixture(scope="package")
def served(models, tmp_path_factory):
    """The folder of the DiT's SavedModel, with four steps of DDIM."""
    path = tmp_path_factory.mktemp("served") / "emoji" / "1"
    export_sampler(models["dit"], path, samplers.DDIM(4), guidance=2.0)
    return path


@pytest.fixture(scope="session")
def card_code():
    """A function: the folder of an export -> the program on its model card, for that folder."""

    def read(path, extra="."):
        card = (path / extra / "model_card.md").read_text()
        return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace('"path', f'"{path}')

    return read

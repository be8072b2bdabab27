"""DiffusionModel with U-Nets: the official losses, training, saving and sampling."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, sample
from keras_cdiff.augmentation import Augmentation
from keras_cdiff.backbones import DhariwalUNet, SongUNet
from keras_cdiff.convert import edm_from_official
from keras_cdiff.ema import PowerDecay
from keras_cdiff.objectives import (
    LogNormalSigma,
    LogUniformSigma,
    LogUniformVariance,
    UniformTime,
)
from keras_cdiff.parameterizations import (
    EDMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)
from keras_cdiff.samplers import Heun
from keras_cdiff.schedules import EDM, VE, VP


class Told(Augmentation):
    """Leaves images as they are and tells the network the official `parameters`."""

    def __init__(self, parameters):
        super().__init__()
        self.told = parameters

    def __call__(self, images, seed):
        return images, self.told


@pytest.mark.parametrize(
    ("loss", "schedule", "parameterization", "objective"),
    [
        ("EDMLoss", EDM(), EDMPreconditioning(), LogNormalSigma()),
        ("VPLoss", EDM(), VPPreconditioning(), LogUniformSigma()),
        ("VPLoss", VP(), VPPreconditioning(), UniformTime(low=1e-5)),
        ("VELoss", EDM(), VEPreconditioning(), LogUniformSigma()),
        ("VELoss", VE(), VEPreconditioning(), LogUniformVariance()),
    ],
    ids=["edm", "vp", "vp_time", "ve", "ve_variance"],
)
def test_losses_equal_the_official_ones(golden, loss, schedule, parameterization, objective):
    """The whole training path, from a converted network, levels and noise to losses."""
    data = golden("edm_loss")
    given, expected = data.folder(f"in/{loss}"), data.folder(f"out/{loss}")
    checkpoint = golden(data.config["losses"][loss]["weights_file"].removesuffix(".npz"))
    # The official losses were taken without dropout.
    network = edm_from_official(
        checkpoint.folder("weights"),
        checkpoint.config["model_type"],
        **{**checkpoint.config["constructor"], "dropout": 0.0},
    )
    told = Told(given["augment_labels"]) if "augment_labels" in given else None
    model = DiffusionModel(
        network, schedule, parameterization, objective, ema=None, augmentation=told
    )
    inputs = {
        "image": np.moveaxis(given["images"], 1, -1),
        "noise": np.moveaxis(given["draw1"], 1, -1),
        "level": schedule.level_at(expected["sigma"]).astype("float32"),
    }
    if "labels" in given:
        inputs["label"] = given["labels"].argmax(axis=1).astype("int32")
    inputs = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
    drawn = model(inputs, training=True)
    losses = ops.convert_to_numpy(model.process.losses(**drawn))
    np.testing.assert_allclose(losses, expected["loss"].mean(axis=(1, 2, 3)), rtol=1e-4)

    noisy = model.process.noisy(inputs["image"], inputs["noise"], inputs["level"])
    alpha = ops.convert_to_numpy(schedule.alpha(inputs["level"]))
    scaled = ops.convert_to_numpy(noisy) / alpha[:, None, None, None]
    np.testing.assert_allclose(scaled, np.moveaxis(expected["noisy"], 1, -1), rtol=1e-4, atol=1e-4)
    clean = ops.convert_to_numpy(model.process.clean(noisy, drawn["output"], drawn["coefficients"]))
    official = np.moveaxis(expected["D"], 1, -1)
    np.testing.assert_allclose(clean, official, atol=1e-4 * np.abs(official).max())


NETWORKS = {
    "SongUNet": lambda: SongUNet(
        8,
        num_classes=3,
        augment_features=9,
        width=8,
        channel_multipliers=(1, 1),
        embedding_multiplier=1,
        num_blocks=1,
        attention_resolutions=(),
        adaptive_scale=True,
        embedding="fourier",
        encoder="residual",
        decoder="skip",
        resample_filter=(1, 3, 3, 1),
        dtype="mixed_bfloat16",
    ),
    "DhariwalUNet": lambda: DhariwalUNet(
        8,
        num_classes=3,
        augment_features=9,
        width=8,
        channel_multipliers=(1, 1),
        embedding_multiplier=1,
        num_blocks=1,
        attention_resolutions=(),
        head_channels=8,
    ),
}


@pytest.mark.parametrize(
    "name", ["SongUNet", pytest.param("DhariwalUNet", marks=pytest.mark.exhaustive)]
)
def test_a_unet_trains_is_saved_and_draws_samples(name, batch, quick, tmp_path):
    model = DiffusionModel(
        NETWORKS[name](),
        EDM(),
        EDMPreconditioning(),
        LogNormalSigma(),
        ema=PowerDecay(0.05),
        augmentation=Augmentation(0.5),
    )
    start = [np.array(ops.convert_to_numpy(weight)) for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0), **quick)
    # What follows a layer that starts at zero learns a step later than that layer.
    history = model.fit(*batch, batch_size=16, epochs=4, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    for before, weight in zip(start, model.trainable_weights, strict=True):
        assert np.any(ops.convert_to_numpy(weight) != before), weight.path

    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.get_config() == model.get_config()
    assert [decay.width for decay, _ in copy.averages()] == [0.05]
    for ours, theirs in zip(model.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))
    samples = sample(copy, 2, sampler=Heun(2), label=[0, 2])
    assert samples.shape == (2, 8, 8, 3)
    assert np.all(np.isfinite(samples))

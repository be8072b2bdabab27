"""The U-Nets against the official code's numbers, and their own promises."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.backbones import DhariwalUNet, SongUNet
from keras_cdiff.convert import edm_from_official
from keras_cdiff.parameterizations import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)

FILES = [
    "edm_ddpmpp_cond",
    "edm_ncsnpp_cond",
    "edm_adm_cond",
    pytest.param("edm_ddpmpp_uncond", marks=pytest.mark.exhaustive),
    pytest.param("edm_adm_iddpm", marks=pytest.mark.exhaustive),
]
PRECONDITIONINGS = {
    "EDMPrecond": EDMPreconditioning(),
    "VPPrecond": VPPreconditioning(),
    "VEPrecond": VEPreconditioning(),
    "iDDPMPrecond": IDDPMPreconditioning(),
}


# As large as the golden networks and in batches as large, so that JAX, which compiles operation by
# operation here, compiles each but once.
def song(**overrides):
    sizes = {"width": 8, "channel_multipliers": (2, 2, 2)}
    options = {"image_size": 16, "num_blocks": 1, "attention_resolutions": (8,)}
    return SongUNet(**{**sizes, **options, **overrides})


def dhariwal(**overrides):
    sizes = {"width": 16, "channel_multipliers": (1, 4)}
    options = {"image_size": 16, "num_blocks": 1, "attention_resolutions": (8,)}
    return DhariwalUNet(**{**sizes, **options, **overrides})


BOTH = [song, pytest.param(dhariwal, marks=pytest.mark.one_backend)]


def inputs(seed=0):
    """Images, levels, labels with a null label of three classes, augmentation parameters."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(6, 16, 16, 3)).astype("float32")
    level = np.linspace(-1.55, 1.1, 6, dtype="float32")
    augment = generator.normal(size=(6, 9)).astype("float32")
    return x, level, np.array([0, 1, 2, 3, 0, 3], "int32"), augment


def close(actual, expected, **tolerance):
    actual = ops.convert_to_numpy(ops.cast(actual, "float32"))
    np.testing.assert_allclose(actual, expected, rtol=0, **tolerance)


def last(images):
    """Official images (B, C, H, W) with their channels last."""
    return np.moveaxis(images, 1, -1)


@pytest.fixture(scope="module")
def official(golden):
    """A function: the name of a golden file -> the network with its weights, and the file."""
    networks = {}

    def load(name):
        data = golden(name)
        if name not in networks:
            networks[name] = edm_from_official(
                data.folder("weights"), data.config["model_type"], **data.config["constructor"]
            )
        return networks[name], data

    return load


def condition(network, data, augment=True):
    told = {}
    if network.num_classes:
        rows = data["in/class_labels"]
        told["label"] = np.where(rows.any(1), rows.argmax(1), network.num_classes).astype("int32")
    if augment and network.augment_features:
        told["augment"] = data["in/augment_labels"]
    return told


@pytest.mark.parametrize("name", [*FILES, "edm_skip_uncond"])
def test_output_is_that_of_the_official_network(official, name):
    network, data = official(name)
    x, level = last(data["in/x"]), data["in/noise_labels"]
    close(network(x, level, **condition(network, data)), last(data["out/raw"]), atol=1e-4)
    if "out/raw_noaug" in data:
        told = condition(network, data, augment=False)
        close(network(x, level, **told), last(data["out/raw_noaug"]), atol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_level_embedding_is_the_official_one(official, name):
    network, data = official(name)
    level = ops.convert_to_tensor(data["in/noise_labels"])
    waves = ops.convert_to_numpy(network.embed_level(level))
    if isinstance(network, SongUNet):  # the official code swaps the halves afterwards
        waves = np.roll(waves, waves.shape[1] // 2, axis=1)
    close(waves, data["out/sub_map_noise"], atol=2e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("name", FILES)
def test_every_preconditioned_network_denoises_as_the_official_one(official, name):
    network, data = official(name)
    tested = [kind for kind in PRECONDITIONINGS if f"in/{kind}/x" in data]
    assert tested
    for kind in tested:
        x, sigma = last(data[f"in/{kind}/x"]), data[f"in/{kind}/sigma"]
        skip, out, scale, told_level = (
            ops.convert_to_numpy(c) for c in PRECONDITIONINGS[kind].coefficients(sigma)
        )
        told = condition(network, data)
        labels = [("D", told)]
        if network.num_classes:
            labels.append(("D_nolabel", {**told, "label": None}))
        for output, told in labels:
            f = network(scale[:, None, None, None] * x, told_level, **told)[..., :3]
            f = ops.convert_to_numpy(f)
            if output == "D":
                # VP's official c_noise loses digits at little noise.
                tolerance = 2e-3 if kind == "VPPrecond" else 2e-4
                close(f, last(data[f"out/{kind}/F"])[..., :3], atol=tolerance)
            clean = skip[:, None, None, None] * x + out[:, None, None, None] * f
            expected = last(data[f"out/{kind}/{output}"])
            close(clean, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("make", BOTH)
def test_starts_near_zero(make):
    network = make(num_classes=3, augment_features=9)
    x, level, label, augment = inputs()
    output = network(x, level, label, augment=augment)
    close(output, np.zeros_like(x), atol=1e-3)


def randomise(network):
    generator = np.random.default_rng(1)
    for weight in network.trainable_weights:
        weight.assign(0.2 * generator.normal(size=weight.shape))
    return network


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("make", "policy"), [(song, "mixed_bfloat16"), (dhariwal, "mixed_float16")]
)
def test_conditions_and_output_are_float32_under_every_policy(make, policy):
    x, level, label, augment = inputs()
    options = {"num_classes": 3, "augment_features": 9, "dropout": 0.0}
    single = randomise(make(**options))
    embedded = ops.convert_to_numpy(single.embed(level, label, augment, False))
    expected = ops.convert_to_numpy(single(x, level, label, augment=augment))
    mixed = make(**options, dtype=policy)
    mixed.set_weights(single.get_weights())
    close(mixed.embed(level, label, augment, False), embedded, atol=1e-6)
    # What a block is told of the level is not rounded on the way either.
    block, told = mixed.middle_blocks[1], {}
    modulation = block.modulation.call
    block.modulation.call = lambda x, **kw: told.update(inputs=x) or modulation(x, **kw)
    output = mixed(x, level, label, augment=augment)
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    close(output, expected, atol=0.05 * np.abs(expected).max())
    assert keras.backend.standardize_dtype(told["inputs"].dtype) == "float32"
    close(told["inputs"], embedded, atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize("make", BOTH)
def test_configuration_builds_the_same_network(make):
    options = {"num_classes": 3, "augment_features": 9, "label_dropout": 0.2}
    if make is song:
        options |= {
            "embedding": "fourier",
            "noise_multiplier": 2,
            "encoder": "residual",
            "decoder": "skip",
            "resample_filter": (1, 3, 3, 1),
            "adaptive_scale": True,
        }
    else:
        options |= {"middle_attention": False, "out_channels": 6}
    network = randomise(make(**options))
    restored = type(network).from_config(network.get_config())
    assert restored.get_config() == network.get_config()
    restored.set_weights(network.get_weights())
    x, level, *_ = inputs()
    close(restored(x, level), ops.convert_to_numpy(network(x, level)), atol=1e-6)


@pytest.mark.parametrize("make", BOTH)
def test_dropout_is_active_in_training_alone_and_follows_its_seed(make):
    network = randomise(make(dropout=0.5))
    x, level, *_ = inputs()

    def run(**kwargs):
        network.seed_generator.state.assign([7, 0])
        return ops.convert_to_numpy(network(x, level, **kwargs))

    np.testing.assert_array_equal(run(training=True), run(training=True))
    assert np.abs(run(training=True) - run()).max() > 1e-3


@pytest.mark.parametrize("make", BOTH)
def test_resolutions_that_no_level_has_are_without_effect(make):
    assert len(make(attention_resolutions=(8, 5)).weights) == len(make().weights)


@pytest.mark.one_backend
@pytest.mark.parametrize("make", BOTH)
def test_no_label_is_the_null_label(make):
    network = randomise(make(num_classes=3))
    x, level, label, _ = inputs()
    null = ops.convert_to_numpy(network(x, level, np.full(6, 3)))
    close(network(x, level), null, atol=0.0)
    labelled = ops.convert_to_numpy(network(x, level, label))
    changed = np.abs(labelled - null).max(axis=(1, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, label < 3)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (song, {"width": 0}, "width=0"),
        (song, {"image_size": 16.0}, "image_size=16.0"),
        (song, {"image_size": 18}, "image_size=18"),
        (song, {"channel_multipliers": ()}, r"channel_multipliers=\(\)"),
        (song, {"channel_multipliers": 2}, "channel_multipliers=2"),
        (song, {"channel_multipliers": (1, 0)}, r"channel_multipliers=\(1, 0\)"),
        (song, {"attention_resolutions": 8}, "attention_resolutions=8"),
        (song, {"dropout": 1.0}, "dropout=1.0"),
        (song, {"label_dropout": -0.1}, "label_dropout=-0.1"),
        (song, {"num_blocks": 0}, "num_blocks=0"),
        (song, {"num_classes": -1}, "num_classes=-1"),
        (song, {"num_classes": None}, "num_classes=None"),
        (song, {"embedding": "sine"}, "embedding='sine'"),
        (song, {"encoder": "dense"}, "encoder='dense'"),
        (song, {"decoder": "residual"}, "decoder='residual'"),
        (song, {"resample_filter": (1, 2, 1)}, r"resample_filter=\(1, 2, 1\)"),
        (song, {"resample_filter": (1, 2)}, r"resample_filter=\(1, 2\)"),
        (song, {"resample_filter": 3}, "resample_filter=3"),
        (song, {"resample_filter": (np.nan, np.nan)}, "resample_filter=.nan"),
        (song, {"noise_multiplier": 0}, "noise_multiplier=0"),
        (song, {"width": 3}, "width=3, noise_multiplier=1"),
        (dhariwal, {"width": 17}, "width=17"),
        (dhariwal, {"head_channels": 0}, "head_channels=0"),
        (dhariwal, {"head_channels": 20}, "64 channels"),
        (dhariwal, {"head_channels": 128}, "64 channels"),
    ],
)
def test_sizes_that_do_not_fit(make, arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        make(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((2, 4, 4, 3), "float32")}, "x.shape=\\(2, 4, 4, 3\\)"),
        ({"label": np.zeros(2, "int32")}, "label.shape=\\(2,\\)"),
        ({"context": np.zeros((2, 1, 1), "float32")}, "context.shape=\\(2, 1, 1\\)"),
        ({"augment": np.zeros((2, 9), "float32")}, "augment.shape=\\(2, 9\\)"),
    ],
)
def test_inputs_that_do_not_fit(arguments, message):
    inputs = {"x": np.zeros((2, 16, 16, 3), "float32"), "level": np.zeros(2, "float32")}
    with pytest.raises(ValueError, match=f"Received: {message}"):
        song()(**{**inputs, **arguments})


def test_augment_of_another_length():
    inputs = np.zeros((2, 16, 16, 3), "float32"), np.zeros(2, "float32")
    with pytest.raises(ValueError, match=r"shape \(batch, 9\).*Received: augment.shape=\(2, 8\)"):
        song(augment_features=9)(*inputs, augment=np.zeros((2, 8), "float32"))

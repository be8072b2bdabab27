"""Official EDM checkpoints: what they become, and what is said of those that do not fit."""

import numpy as np
import pytest
from keras import ops

from keras_cdiff.convert import edm_from_official

FILES = [
    "edm_ddpmpp_cond",
    "edm_adm_cond",
    *(
        pytest.param(name, marks=pytest.mark.one_backend)
        for name in ("edm_ddpmpp_uncond", "edm_ncsnpp_cond", "edm_skip_uncond", "edm_adm_iddpm")
    ),
]


@pytest.fixture
def checkpoint(golden):
    """A function: the name of a golden file -> state dict, model type, constructor."""

    def load(name="edm_ddpmpp_cond"):
        data = golden(name)
        return data.folder("weights"), data.config["model_type"], data.config["constructor"]

    return load


@pytest.mark.parametrize("name", FILES)
def test_every_weight_is_taken_from_the_checkpoint(checkpoint, name):
    state_dict, model_type, constructor = checkpoint(name)
    network = edm_from_official(state_dict, model_type, **constructor)
    # Layouts differ, values do not: compare the sorted values of all weights.
    ours = np.concatenate(
        [
            np.ravel(ops.convert_to_numpy(w))
            for w in network.weights
            if "seed_generator" not in w.path
        ]
    )
    official = np.concatenate(
        [v.ravel() for k, v in state_dict.items() if not k.endswith("resample_filter")]
    )
    np.testing.assert_array_equal(np.sort(ours), np.sort(official))


def test_constructor_arguments_become_ours(checkpoint):
    network = edm_from_official(*checkpoint()[:2], **checkpoint()[2])
    assert (network.image_size, network.channels, network.num_classes) == (16, 3, 10)
    assert (network.augment_features, network.dropout, network.label_dropout) == (9, 0.1, 0)
    assert (network.width, network.channel_multipliers) == (8, (2, 2, 2))


def test_a_preconditioned_checkpoint_is_unwrapped(checkpoint):
    state_dict, model_type, constructor = checkpoint("edm_adm_iddpm")
    wrapped = {f"model.{name}": value for name, value in state_dict.items()}
    wrapped["u"] = np.zeros(1001, "float32")
    plain = edm_from_official(state_dict, model_type, **constructor)
    unwrapped = edm_from_official(wrapped, model_type, **constructor)
    for ours, expected in zip(unwrapped.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_all_that_does_not_fit_is_named(checkpoint):
    state_dict, model_type, constructor = checkpoint()
    broken = dict(state_dict)
    del broken["enc.8x8_block0.qkv.bias"]
    broken["enc.2x2_down.affine.bias"] = np.zeros(16, "float32")
    broken["map_layer0.weight"] = np.zeros((32, 4), "float32")
    with pytest.raises(ValueError) as raised:
        edm_from_official(broken, model_type, **constructor)
    assert "enc.8x8_block0.qkv.bias is missing" in str(raised.value)
    assert "enc.2x2_down.affine.bias is not expected" in str(raised.value)
    assert "map_layer0.weight has the shape (32, 4) instead of (32, 8)" in str(raised.value)


def test_another_filter_is_refused(checkpoint):
    state_dict, model_type, constructor = checkpoint()
    name = "enc.8x8_down.conv0.resample_filter"
    state_dict = {**state_dict, name: 2 * state_dict[name]}
    with pytest.raises(ValueError, match=f"`{name}` must be the filter that resample_filter"):
        edm_from_official(state_dict, model_type, **constructor)


def test_a_head_may_be_wider_than_the_official_64_channels():
    # The official code counts heads by whole division: 96 channels are one head.
    constructor = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "num_blocks": 1}
    constructor |= {"model_channels": 96, "channel_mult": [1], "attn_resolutions": [8]}
    with pytest.raises(ValueError, match=r"dec\.8x8_in0\.qkv\.weight is missing"):
        edm_from_official({}, "DhariwalUNet", **constructor)


def test_unknown_model_type(checkpoint):
    with pytest.raises(ValueError, match="Received: model_type='DDPM'"):
        edm_from_official({}, "DDPM", **checkpoint()[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"image_size": 16}, "Received: \\['image_size'\\]"), ({"in_channels": None}, "Received: no")],
)
def test_arguments_that_do_not_fit(checkpoint, change, message):
    state_dict, model_type, constructor = checkpoint()
    with pytest.raises(ValueError, match=message):
        edm_from_official(state_dict, model_type, **{**constructor, **change})

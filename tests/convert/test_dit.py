"""Official checkpoints: what they become, and what is said of those that do not fit."""

import re

import numpy as np
import pytest
from keras import ops

from keras_cdiff.convert import dit_from_official


@pytest.fixture
def checkpoint(golden):
    data = golden("dit_base")
    return data.folder("weights"), data.config["constructor"]


def test_constructor_arguments_become_ours(checkpoint):
    state_dict, constructor = checkpoint
    network = dit_from_official(state_dict, **constructor)
    assert (network.image_size, network.channels, network.out_channels) == (8, 4, 8)
    assert (network.num_classes, network.label_dropout) == (10, 0.1)


def test_every_weight_is_taken_from_the_checkpoint(checkpoint):
    state_dict, constructor = checkpoint
    network = dit_from_official(state_dict, **constructor)
    # Layouts differ, values do not: compare the sorted values of all weights.
    ours = np.concatenate([np.ravel(ops.convert_to_numpy(w)) for w in network.weights])
    official = np.concatenate([value.ravel() for value in state_dict.values()])
    np.testing.assert_allclose(np.sort(ours), np.sort(official), atol=1e-6)


def test_no_null_label_without_label_dropout(checkpoint):
    state_dict, constructor = checkpoint
    name = "y_embedder.embedding_table.weight"
    state_dict = {**state_dict, name: state_dict[name][:-1]}
    network = dit_from_official(state_dict, **{**constructor, "class_dropout_prob": 0.0})
    np.testing.assert_array_equal(
        ops.convert_to_numpy(network.label_embedding.embeddings), state_dict[name]
    )


def test_all_that_does_not_fit_is_named(checkpoint):
    state_dict, constructor = checkpoint
    broken = dict(state_dict)
    del broken["blocks.1.attn.proj.bias"]
    broken["blocks.2.attn.proj.bias"] = np.zeros(64, "float32")
    broken["final_layer.linear.weight"] = np.zeros((16, 64), "float32")
    with pytest.raises(ValueError) as raised:
        dit_from_official(broken, **constructor)
    assert "blocks.1.attn.proj.bias is missing" in str(raised.value)
    assert "blocks.2.attn.proj.bias is not expected" in str(raised.value)
    expected = "final_layer.linear.weight has the shape (16, 64) instead of (32, 64)"
    assert expected in str(raised.value)


def test_other_positions_are_refused(checkpoint):
    state_dict, constructor = checkpoint
    state_dict = {**state_dict, "pos_embed": state_dict["pos_embed"][:, ::-1]}
    with pytest.raises(ValueError, match="`pos_embed` must be the fixed sin-cos table"):
        dit_from_official(state_dict, **constructor)


@pytest.mark.parametrize(("argument", "value"), [("image_size", 8), ("num_classes", 0)])
def test_unofficial_arguments(checkpoint, argument, value):
    state_dict, constructor = checkpoint
    with pytest.raises(ValueError, match=f"Received: .*{re.escape(argument)}"):
        dit_from_official(state_dict, **{**constructor, argument: value})

"""Convolutions with batch normalisation folded in, and state dicts that do not fit."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.evaluation.features.folded_convolutions import FoldedConvolutions

SIZES = {"conv": (4, 3, 3, 3), "wise": (4, 1, 3, 3), "dense": (5, 4)}


@pytest.fixture
def state_dict():
    rng = np.random.default_rng(0)
    arrays = {f"{name}.weight": rng.normal(size=shape) for name, shape in SIZES.items()}
    arrays["dense.bias"] = rng.normal(size=5)
    for name in ("conv_bn", "wise_bn"):
        arrays |= {f"{name}.{part}": rng.normal(size=4) for part in ("weight", "bias")}
        arrays |= {f"{name}.running_mean": rng.normal(size=4)}
        arrays |= {f"{name}.running_var": rng.uniform(0.1, 3, 4)}
    return {name: array.astype("float32") for name, array in arrays.items()}


@pytest.fixture
def network():
    """A small network of one of each, and what loads it."""
    convolutions = FoldedConvolutions(epsilon=0.1)
    inputs = keras.Input((7, 7, 3), dtype="float32")
    x = convolutions(inputs, "conv", "conv_bn", 4, 3, strides=2)
    x = convolutions(x, "wise", "wise_bn", None, 3)
    outputs = convolutions.dense(ops.mean(x, axis=(1, 2)), "dense", 5)
    return keras.Model(inputs, outputs), convolutions


def test_folding_changes_no_value(network, state_dict):
    import torch

    model, convolutions = network
    convolutions.load(state_dict, "a test")
    images = np.random.default_rng(1).normal(size=(2, 7, 7, 3)).astype("float32")

    weights = {name: torch.tensor(array) for name, array in state_dict.items()}
    parts = ("running_mean", "running_var", "weight", "bias")
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    for name, options in (("conv", {"stride": 2}), ("wise", {"groups": 4})):
        x = torch.nn.functional.conv2d(x, weights[f"{name}.weight"], padding=1, **options)
        statistics = [weights[f"{name}_bn.{part}"] for part in parts]
        x = torch.nn.functional.batch_norm(x, *statistics, eps=0.1)
    expected = x.mean((2, 3)) @ weights["dense.weight"].T + weights["dense.bias"]
    actual = ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.weight": None}, "those of a test.*Received: conv.weight is missing"),
        ({"head.weight": np.zeros(3)}, "head.weight is not expected"),
        (
            {"wise.weight": np.zeros((4, 4, 3, 3), "float32")},
            r"wise.weight has the shape \(4, 4, 3, 3\) instead of \(4, 1, 3, 3\)",
        ),
        ({"dense.bias": np.full(5, np.nan, "float32")}, "dense.bias is not made of finite floats"),
        ({"dense.bias": np.zeros(5, "int32")}, "dense.bias is not made of finite floats"),
        (
            {name: None for name in ("conv.weight", "wise.weight", "dense.weight")}
            | {f"x{i}": np.zeros(1) for i in range(5)},
            "and 3 more$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(network, state_dict, change, message):
    state_dict |= change
    state_dict = {name: array for name, array in state_dict.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        network[1].load(state_dict, "a test")


@pytest.mark.backend_free
def test_what_inference_does_not_use_may_be_there(network, state_dict):
    extra = {"conv_bn.num_batches_tracked": np.array(3), "aux.bias": np.zeros(2)}
    taken = network[1].load(state_dict | extra, "a test", unused=["aux.bias"])
    assert set(taken) == set(state_dict)

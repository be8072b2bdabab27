"""MobileNetV2 equals that of torchvision carrying the same weights."""

import keras
import numpy as np
import pytest

from keras_cdiff.evaluation.features.mobilenet_v2 import IMAGENET_INPUT, mobilenet_v2_network


@pytest.mark.one_backend
def test_features_and_logits_are_those_of_torchvision(torchvision, random_weights, run_torch):
    import torch

    reference = torchvision.models.mobilenet_v2(weights=None).eval()
    state_dict = random_weights(reference)
    reference.load_state_dict({name: torch.tensor(v) for name, v in state_dict.items()})
    # Even sizes at every reduction, where Keras' own "same" padding is not PyTorch's.
    images = np.random.default_rng(0).uniform(-2, 2, (2, 64, 96, 3)).astype("float32")
    expected_logits = run_torch(reference, images)
    expected = run_torch(reference.features, images).mean((2, 3))

    network, taken = mobilenet_v2_network(state_dict)
    assert len(taken) == len([n for n in state_dict if not n.endswith("num_batches_tracked")])
    network.jit_compile = keras.backend.backend() == "jax"
    features, logits = network.predict_on_batch(images)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * expected.max())
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4 * expected_logits.max())


@pytest.mark.backend_free
def test_bytes_become_what_torchvision_makes_of_them(torchvision):
    import torch

    normalize = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224)).astype("uint8")
    normalize.resize_size = [224]
    expected = normalize(torch.tensor(pixels)).numpy().transpose(1, 2, 0)
    ours = pixels.transpose(1, 2, 0) * IMAGENET_INPUT["scale"] + IMAGENET_INPUT["offset"]
    np.testing.assert_allclose(ours, expected, atol=1e-5)

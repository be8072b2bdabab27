"""The Inception network equals that of pytorch-fid carrying the same weights."""

import keras
import numpy as np
import pytest

from keras_cdiff.evaluation.features.inception import INCEPTION_INPUT, inception_network


@pytest.mark.one_backend
def test_features_and_logits_are_those_of_pytorch_fid(fid_inception, run_torch):
    reference, state_dict = fid_inception
    # 107 pixels leave 2 x 2 positions in the last blocks: every window there meets the border.
    images = np.random.default_rng(0).uniform(-1, 1, (2, 107, 107, 3)).astype("float32")
    expected = run_torch(reference, images)
    assert 0.5 < expected.std() < 5  # neither vanished nor exploded

    network, taken = inception_network(state_dict)
    assert network.output_shape == [(None, 2048), (None, 1008)]
    assert set(state_dict) - set(taken) == {"fc.bias"} | {
        name for name in state_dict if name.endswith("num_batches_tracked")
    }
    network.jit_compile = keras.backend.backend() == "jax"
    features, logits = network.predict_on_batch(images)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4)
    # Inception Scores leave the bias out.
    np.testing.assert_allclose(logits, expected @ state_dict["fc.weight"].T, rtol=0, atol=1e-4)


@pytest.mark.backend_free
def test_bytes_become_what_the_graph_of_2015_makes_of_them():
    pixels = np.arange(256, dtype="float32")
    ours = pixels * np.float32(INCEPTION_INPUT["scale"]) + np.float32(INCEPTION_INPUT["offset"])
    np.testing.assert_array_equal(ours, (pixels - 128) / 128)

"""Resampling and the block of the U-Nets."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.backbones.resampling import downsample, upsample
from keras_cdiff.backbones.unet_layers import GroupNorm, UNetBlock


def brute_force(x, taps, up):
    """Resampling as its definition says, pixel by pixel: zeros between, filter, pick."""
    taps = np.divide(taps, np.sum(taps)) * (2 if up else 1)
    reach = len(taps) // 2 - 1
    for axis in (1, 2):
        x = np.moveaxis(x, axis, 0)
        size = len(x)
        out = np.zeros((2 * size if up else size // 2, *x.shape[1:]))
        for n in range(len(out)):
            for j, tap in enumerate(taps):
                position = n + reach - j if up else 2 * n + j - reach
                if up and position % 2:
                    continue
                position = position // 2 if up else position
                if 0 <= position < size:
                    out[n] += tap * x[position]
        x = np.moveaxis(out, 0, axis)
    return x


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 5, 2, 1)])
def test_resampling_is_filtering(taps, up):
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype("float32")
    actual = (upsample if up else downsample)(ops.convert_to_tensor(x), taps)
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual), brute_force(x, taps, up), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_brightness(taps):
    x = ops.ones((1, 12, 12, 1))
    inside = ops.convert_to_numpy(downsample(x, taps))[:, 1:-1, 1:-1]
    np.testing.assert_allclose(inside, 1.0, atol=1e-6)
    inside = ops.convert_to_numpy(upsample(x, taps))[:, 2:-2, 2:-2]
    np.testing.assert_allclose(inside, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (8, 2), (18, 3), (128, 32), (144, 24), (256, 32), (384, 32)]
)
def test_groups_are_equal_and_not_too_small(channels, groups):
    norm = GroupNorm()
    norm.build((None, 2, 2, channels))
    assert norm.groups == groups


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_group_norm_with_modulation_is_its_formula(policy):
    generator = np.random.default_rng(0)
    norm = GroupNorm(1e-5, dtype=policy)
    norm.build((None, 4, 6, 8))
    gamma, beta = 1.0 + 0.1 * np.arange(8), 0.1 * np.arange(8)
    norm.gamma.assign(gamma)
    norm.beta.assign(beta)
    # Far from zero, where the squares' mean less the mean's square has no digits left.
    mean, deviation = (30.0, 0.01) if policy == "float32" else (100.0, 4.0)
    x = mean + deviation * generator.normal(size=(2, 4, 6, 8))
    x = x.astype(norm.compute_dtype)
    offset, scale, shift = generator.normal(size=(3, 2, 8)).astype("float32")

    def expected(x):
        groups = x.reshape(2, 4, 6, 2, 4)
        mean = groups.mean(axis=(1, 2, 4), keepdims=True)
        variance = groups.var(axis=(1, 2, 4), keepdims=True)
        return ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * gamma + beta

    def check(actual, expected):
        assert keras.backend.standardize_dtype(actual.dtype) == norm.compute_dtype
        tolerance = 2e-3 if policy == "float32" else 5e-3
        np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, atol=tolerance)

    exact = x.astype("float64")
    check(norm(x), expected(exact))
    check(norm(x, offset=offset), expected(exact + offset[:, None, None]))
    modulated = expected(exact) * (1.0 + scale[:, None, None]) + shift[:, None, None]
    check(norm(x, scale=scale, shift=shift), modulated)


def test_a_block_starts_as_its_skip():
    block = UNetBlock(8, num_heads=2, skip_scale=1.0)
    block.build((None, 4, 4, 8), (None, 16))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype("float32")
    output = block(x, np.ones((2, 16), "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(output), x, atol=1e-6)


@pytest.mark.parametrize("adaptive_scale", [False, True])
def test_a_block_is_told_of_the_level(adaptive_scale):
    block = UNetBlock(8, adaptive_scale=adaptive_scale, output_initializer="glorot_uniform")
    block.build((None, 4, 4, 8), (None, 16))
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype("float32")
    first, second = (
        ops.convert_to_numpy(block(x, value * np.ones((1, 16), "float32"))) for value in (0.0, 1.0)
    )
    assert np.abs(first - second).max() > 1e-3


def test_block_configuration():
    block = UNetBlock(8, resample="up", num_heads=2, dropout=0.1, resample_filter=(1, 3, 3, 1))
    restored = UNetBlock.from_config(block.get_config())
    assert restored.get_config() == block.get_config()
    restored.build((None, 4, 4, 4), (None, 16))
    block.build((None, 4, 4, 4), (None, 16))
    assert [w.shape for w in restored.weights] == [w.shape for w in block.weights]
    assert keras.saving.get_registered_object("keras_cdiff>UNetBlock") is UNetBlock

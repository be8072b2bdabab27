"""Decay profiles of the moving averages, and averages of other widths from stored ones."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.ema import (
    FixedDecay,
    PowerDecay,
    Snapshot,
    WarmupDecay,
    power_exponent,
    profile_products,
    reconstruct,
)


def value_of(tensor):
    return float(ops.convert_to_numpy(tensor))


def test_fixed_decay_is_the_same_at_every_step():
    decay = FixedDecay(0.99)
    for iteration in (1, 1000):
        value = ops.convert_to_numpy(decay(ops.convert_to_tensor(iteration), 32))
        np.testing.assert_allclose(value, 0.99, rtol=1e-6)


def test_warmup_follows_the_rule_of_edm():
    # halflife = min(halflife, rampup * images before the step), beta = 0.5^(batch / halflife).
    decay = WarmupDecay(halflife=500_000, rampup=0.05)
    for iteration in (1, 2, 3, 100, 50_000, 1_000_000):
        images = (iteration - 1) * 512
        expected = 0.5 ** (512 / max(min(500_000, 0.05 * images), 1e-8))
        step = ops.convert_to_tensor(iteration), 512
        np.testing.assert_allclose(value_of(decay(*step)), expected, rtol=1e-5)
        np.testing.assert_allclose(value_of(decay.rate(*step)), 1 - expected, rtol=1e-5)


# The power-function profile


def profile(width, iteration):
    """The share of each step in the average after `iteration` steps, by the recursion."""
    exponent = power_exponent(width)
    shares = np.zeros(iteration)
    for t in range(1, iteration + 1):
        decay = (1 - 1 / t) ** (exponent + 1)
        shares *= decay
        shares[t - 1] = 1 - decay
    return shares


def test_power_decay_weighs_steps_by_a_power():
    for width in (0.05, 0.1, 12**-0.5):
        exponent = power_exponent(width)
        decay = PowerDecay(width)
        for iteration in (1, 2, 10, 3_000_000):
            expected = np.expm1((exponent + 1) * np.log1p(-1 / iteration)) if iteration > 1 else -1
            step = ops.convert_to_tensor(iteration), 8
            np.testing.assert_allclose(value_of(decay.rate(*step)), -expected, rtol=1e-5)
            np.testing.assert_allclose(value_of(decay(*step)), 1 + expected, atol=1e-6)
        # The recursion's shares are the integrals of tau^gamma over each step.
        k = np.arange(1, 101)
        integral = ((k / 100) ** (exponent + 1)) - ((k - 1) / 100) ** (exponent + 1)
        np.testing.assert_allclose(profile(width, 100), integral, atol=1e-12)


def test_width_is_the_standard_deviation_of_the_profile():
    for width in (0.03, 0.1, 0.25):
        shares, place = profile(width, 4000), (np.arange(4000) + 0.5) / 4000
        mean = np.sum(shares * place)
        deviation = np.sqrt(np.sum(shares * (place - mean) ** 2))
        np.testing.assert_allclose(deviation, width, rtol=1e-3)
        exponent = power_exponent(width)
        closed = np.sqrt(exponent + 1) / (exponent + 2) / np.sqrt(exponent + 3)
        np.testing.assert_allclose(closed, width, rtol=1e-9)
    np.testing.assert_allclose(power_exponent(12**-0.5), 0.0, atol=1e-6)


def test_inner_products_of_profiles():
    profiles = [(700, 0.05), (1000, 0.1), (1000, 0.25), (400, 0.2)]
    shares = np.zeros((4, 1000))
    for row, (iteration, width) in zip(shares, profiles, strict=True):
        row[:iteration] = profile(width, iteration)
    products = profile_products(profiles, profiles)
    # The sums take a profile as constant within a step.
    np.testing.assert_allclose(products, shares @ shares.T, rtol=2e-3)
    np.testing.assert_allclose(products, products.T, rtol=1e-12)


def train_by_hand(widths, steps, every):
    """Averages of random walks, stored now and then: snapshots, and the final average by width."""
    walk = np.cumsum(np.random.default_rng(0).normal(size=(steps, 40)), axis=0)
    snapshots, averages = [], {width: np.zeros(40) for width in widths}
    for t, weights in enumerate(walk, start=1):
        for width in widths:
            decay = (1 - 1 / t) ** (power_exponent(width) + 1)
            averages[width] = decay * averages[width] + (1 - decay) * weights
            if t % every == 0:
                arrays = {"kernel": np.float32(averages[width].reshape(4, 10))}
                snapshots.append(Snapshot(t, width, arrays))
    return snapshots


def test_reconstruction_equals_the_average_that_was_not_stored():
    snapshots = train_by_hand([0.05, 0.1, 0.075, 0.15], 2000, 100)
    stored = [s for s in snapshots if s.width in (0.05, 0.1)]
    kernels = {(s.iteration, s.width): s.weights["kernel"] for s in snapshots}
    for iteration in (1000, 2000):
        for width in (0.075, 0.15):
            wanted, nearest = kernels[iteration, width], kernels[iteration, 0.1]
            error = np.linalg.norm(reconstruct(stored, width, iteration)["kernel"] - wanted)
            assert error < 0.01 * np.linalg.norm(wanted)
            assert error < 0.3 * np.linalg.norm(nearest - wanted)


def test_reconstruction_of_a_stored_average_is_that_average():
    snapshots = train_by_hand([0.05, 0.1], 600, 60)
    for wanted in (snapshots[-1], snapshots[8]):
        arrays = reconstruct(snapshots, wanted.width, wanted.iteration)
        assert arrays["kernel"].dtype == np.float32
        np.testing.assert_allclose(arrays["kernel"], wanted.weights["kernel"], atol=1e-4)
    last = reconstruct(snapshots, 0.1)["kernel"]
    np.testing.assert_allclose(last, snapshots[-1].weights["kernel"], atol=1e-4)


def test_what_cannot_be_reconstructed_is_named():
    good = Snapshot(10, 0.1, {"a": np.zeros(3)})
    for snapshots, arguments, received in (
        ([], (0.1,), "no snapshots"),
        ([good], (0.3,), "width=0.3"),
        ([good], (0.1, 11), "iteration=11"),
        ([good], (0.1, 0), "iteration=0"),
        ([good, Snapshot(20, 0.1, {"a": np.zeros(4)})], (0.1,), "iteration=20"),
        ([good, Snapshot(20, 0.1, {"b": np.zeros(3)})], (0.1,), "iteration=20"),
    ):
        with pytest.raises(ValueError, match=f"Received: .*{received}"):
            reconstruct(snapshots, *arguments)


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: FixedDecay(1.0), "decay=1.0"),
        (lambda: FixedDecay(-0.1), "decay=-0.1"),
        (lambda: WarmupDecay(halflife=0), "halflife=0"),
        (lambda: WarmupDecay(rampup=float("nan")), "rampup=nan"),
        (lambda: PowerDecay(0.0), "width=0.0"),
        (lambda: PowerDecay(0.29), "width=0.29"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        make()


def test_config_round_trip():
    for decay in (FixedDecay(0.5), WarmupDecay(1000.0, 0.1), PowerDecay(0.2)):
        config = keras.saving.serialize_keras_object(decay)
        assert keras.saving.deserialize_keras_object(config).get_config() == decay.get_config()

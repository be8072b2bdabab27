"""What curves say, against curves whose answer is known."""

import numpy as np
import pytest
import scipy.stats

from keras_cdiff import study

pytestmark = pytest.mark.backend_free


def exponential(rate, steps, first=1.0, last=0.2):
    return last + (first - last) * np.exp(-rate * np.asarray(steps))


def test_iterations_of_an_exponential():
    steps = np.arange(0, 1001, 5)
    for rate in (0.02, 0.05):
        curve = exponential(rate, steps)
        for fraction in (0.5, 0.9):
            expected = -np.log(1.0 - fraction) / rate
            found = study.iterations_to_reach(steps, curve, fraction)
            assert found == pytest.approx(expected, rel=0.02)


def test_normalised_curves_begin_at_one_and_end_at_zero():
    steps = np.arange(0, 1001, 5)
    height = study.normalised(exponential(0.02, steps, first=7.0, last=3.0))
    assert height[0] == 1.0
    assert abs(np.mean(height[-20:])) < 1e-12
    np.testing.assert_allclose(height, exponential(0.02, steps, last=0.0), atol=1e-6)


def test_converged_is_the_mean_of_the_last_tenth():
    assert study.converged([5.0, 4.0, 3.0]) == 3.0
    assert study.converged(np.arange(40.0)) == 37.5


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_curve_that_did_not_fall_reaches_nothing(values):
    assert np.all(np.isnan(study.normalised(values)))
    assert np.isnan(study.iterations_to_reach(range(len(values)), values))


def test_a_curve_is_interpolated_between_measurements():
    assert study.iterations_to_reach([0, 10, 20, 30], [1.0, 0.5, 0.0, 0.0], 0.75) == 15.0


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.1])
def test_fractions_out_of_range(fraction):
    with pytest.raises(ValueError, match=f"fraction={fraction}"):
        study.iterations_to_reach([0, 1], [1.0, 0.0], fraction)


def test_rank_correlation_with_ties_and_gaps():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30).astype(float), rng.integers(0, 6, 30).astype(float)
    expected = scipy.stats.spearmanr(a, b).statistic
    assert study.rank_correlation(a, b) == pytest.approx(expected)
    with_gap = np.append(b, np.nan)
    assert study.rank_correlation(np.append(a, 3.0), with_gap) == pytest.approx(expected)
    assert np.isnan(study.rank_correlation([1, 2], [2, 1]))
    assert np.isnan(study.rank_correlation([1, 2, 3], [5, 5, 5]))


@pytest.mark.parametrize(
    ("difficulty", "found"),
    [
        ([9, 7, 4, 3, 1], "falls"),
        ([1, 2, 3, 5, 9], "rises"),
        ([5.0, 5.1, 5.2, 4.9, 5.0], "flat"),
        ([1, 5, 9, 4, 2], "peaks"),
        ([9, 1, 5, 1, 9], "valley"),
        ([9, 5.5, 8, 7, 8], "unclear"),
        ([1.7, 0, 1, 3, 7], "rises"),
        ([9, 5, 2, 4, 8], "valley"),
        ([250, 150, 120, 107, 117], "falls"),
        ([9, np.nan, 4, 3, 1], "falls"),
        ([np.nan, np.nan, 4, 3, np.nan], "unknown"),
        ([5.5, 9, 8, 7, 2], "peaks"),
        ([1, 2, 3, 4, 0.1], "peaks"),
    ],
)
def test_trends(difficulty, found):
    assert study.trend(range(5), difficulty) == found

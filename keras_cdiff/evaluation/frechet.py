"""The Fréchet distance of two sets of features, FID if they are Inception's."""

from typing import NamedTuple

import numpy as np

from keras_cdiff.evaluation.checks import (
    block_rows,
    check_count,
    check_features,
    check_widths,
)
from keras_cdiff.evaluation.statistics import FeatureStatistics


def frechet_distance(real: object, generated: object) -> float:
    """Returns the squared Fréchet distance of the Gaussians fitted to two sets of features.

        d^2 = ||m_1 - m_2||^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

    The last trace is the sum of the singular values of F_1 F_2^T, for any factors F^T F = S. No
    root is taken of a number that rounding made, so that covariances of deficient rank, or nearly
    so, cost no digits. A set with N <= D rows is its own factor, (x_i - m) / sqrt(N - 1); otherwise
    F follows from the symmetric eigenvalues of S, without those below D eps times the largest. All
    in float64, whatever the dtype of the features.

    It grows with fewer images: compare only sets of equal size, or extrapolate with
    `frechet_distance_infinity`.

    Args:
        real: features (N, D), a memory map for instance, or `FeatureStatistics`.
        generated: features (M, D) or `FeatureStatistics`. The order does not matter.

    Returns:
        d^2 >= 0, and exactly 0 for identical input.

    Raises:
        ValueError: if a set has fewer than two rows, is not finite floating-point numbers (N, D),
            or the widths differ.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium", 2017; Dowson and Landau, "The Fréchet Distance between Multivariate Normal
        Distributions", 1982.
    """
    first, second = _fit("real", real), _fit("generated", generated)
    check_widths(len(first.mean), len(second.mean))
    return _distance(first, second)


def frechet_distance_infinity(
    real: object,
    generated: object,
    num_points: int = 15,
    min_samples: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the Fréchet distance extrapolated to infinitely many generated images.

    The distance of n images exceeds that of infinitely many by about c / n. It is computed for
    `num_points` sizes n, spaced evenly from `min_samples` to N, each time with the first n images
    of a new random order; the line a + c / n is fitted by least squares, every point with the same
    weight, and a is the value. The side of `real` is taken as it is.

    The standard error is that of a in the fit. The subsets share images, so it tells how well they
    determine the line; another set of N images would change a by more, in trials up to twice as
    much.

    Args:
        real: features (M, D) or `FeatureStatistics`.
        generated: features (N, D).
        num_points: number of sizes, >= 3.
        min_samples: least size, in [2, N); None for 5,000, or N / 2 if that is less.
        seed: of the random orders, a non-negative integer.

    Returns:
        value (not bounded by 0) and its standard error.

    Raises:
        ValueError: as `frechet_distance`, or if a number is out of range, or `generated` is
            `FeatureStatistics`.

    Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score and Where to Find
        Them", 2020.
    """
    if isinstance(generated, FeatureStatistics):
        raise ValueError(
            "`generated` must be features (N, D), of which subsets can be drawn. "
            "Received: generated=FeatureStatistics"
        )
    reference, generated = _fit("real", real), check_features("generated", generated)
    check_widths(len(reference.mean), generated.shape[1])
    total = len(generated)
    num_points = check_count("num_points", num_points, 3, None, "the number of sizes")
    if min_samples is None:
        min_samples = max(2, min(5000, total // 2))
    min_samples = check_count(
        "min_samples", min_samples, 2, total - 1, "the least size, less than all generated images"
    )
    rng = np.random.default_rng(check_count("seed", seed, 0, None, "of the random orders"))
    sizes = np.linspace(min_samples, total, num_points).astype(np.int64)
    distances = [
        _distance(reference, _fit_rows(generated, np.sort(rng.permutation(total)[:size])))
        for size in sizes
    ]
    return _intercept(1 / sizes, np.array(distances))


class _Gaussian(NamedTuple):
    """Mean (D,) and a factor F (R, D) of the covariance F^T F."""

    mean: np.ndarray
    factor: np.ndarray


def _fit(name: str, source: object) -> _Gaussian:
    if isinstance(source, FeatureStatistics):
        return _from_covariance(source)
    features = check_features(name, source)
    return _fit_rows(features, np.arange(len(features)))


def _fit_rows(features: np.ndarray, rows: np.ndarray) -> _Gaussian:
    """The Gaussian of some rows, given by ascending indices."""
    width = features.shape[1]
    if len(rows) <= width:
        chosen = features[rows].astype(np.float64)
        mean = chosen.mean(axis=0)
        return _Gaussian(mean, (chosen - mean) / np.sqrt(len(rows) - 1))
    statistics, size = FeatureStatistics(width), block_rows(width)
    for start in range(0, len(rows), size):
        statistics.update(features[rows[start : start + size]])
    return _from_covariance(statistics)


def _from_covariance(statistics: FeatureStatistics) -> _Gaussian:
    variances, directions = np.linalg.eigh(statistics.covariance)
    kept = variances > len(variances) * np.finfo(np.float64).eps * variances[-1]
    factor = directions[:, kept] * np.sqrt(variances[kept])
    return _Gaussian(statistics.mean, factor.T)


def _distance(first: _Gaussian, second: _Gaussian) -> float:
    if np.array_equal(first.mean, second.mean) and np.array_equal(first.factor, second.factor):
        return 0.0
    product = first.factor @ second.factor.T
    overlap = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    spread = np.square(first.factor).sum() + np.square(second.factor).sum()
    distance = np.square(first.mean - second.mean).sum() + spread - 2 * overlap
    return max(float(distance), 0.0)


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept of the least-squares line through (x, y), and its standard error."""
    centred = x - x.mean()
    slope = (centred * y).sum() / np.square(centred).sum()
    value = y.mean() - slope * x.mean()
    variance = np.square(y - value - slope * x).sum() / (len(x) - 2)
    error = np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / np.square(centred).sum()))
    return float(value), float(error)

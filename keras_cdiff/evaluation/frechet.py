"""The Fréchet distance of two sets of features, FID if they are Inception's."""

from typing import NamedTuple

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.evaluation.checks import block_rows, check_features, check_finite, check_widths
from keras_cdiff.evaluation.statistics import FeatureStatistics

_EPSILON = float(np.finfo(np.float64).eps)
_TOLERANCE = 1e-9  # of the traces, for a faster way


def frechet_distance(real: object, generated: object) -> float:
    """Returns the squared Fréchet distance of the Gaussians fitted to two sets of features.

        d^2 = ||m_1 - m_2||^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

    The last trace is the sum of the singular values of P = F_1 F_2^T, for any factors F^T F = S. A
    set with N <= D rows is its own factor, (x_i - m) / sqrt(N - 1). Otherwise F is the Cholesky
    factor of S, or, where S is singular or nearly so, made of its symmetric eigenvalues without
    those below D eps times the largest. The singular values of P are the roots of the symmetric
    eigenvalues of P^T P; where one of these is near rounding, or all of it could change d^2 by more
    than 1e-9 (tr S_1 + tr S_2), they come from P itself. So no root is taken of a number that
    rounding made, and covariances of deficient rank cost no digits. All in float64, whatever the
    features' dtype.

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
    determine the line; another set of N images would change a by more, in trials up to three times
    as much.

    Args:
        real: features (M, D) or `FeatureStatistics`.
        generated: features (N, D), N >= 3.
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
    # Fewer have no two sizes that determine a line.
    generated = check_features("generated", generated, min_rows=3)
    reference = _fit("real", real)
    check_widths(len(reference.mean), generated.shape[1])
    total = len(generated)
    num_points = check_integer("num_points", num_points, 3, None, "the number of sizes")
    if min_samples is None:
        min_samples = max(2, min(5000, total // 2))
    min_samples = check_integer(
        "min_samples", min_samples, 2, total - 1, "the least size, less than all generated images"
    )
    rng = np.random.default_rng(check_integer("seed", seed, 0, None, "of the random orders"))
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
    features = check_features(name, source, finite=False)
    if len(features) > features.shape[1]:
        return _from_covariance(FeatureStatistics.of(features, name))
    check_finite(name, features)
    return _from_rows(features)


def _fit_rows(features: np.ndarray, rows: np.ndarray) -> _Gaussian:
    """The Gaussian of some rows, given by ascending indices."""
    width = features.shape[1]
    if len(rows) <= width:
        return _from_rows(features[rows])
    statistics, size = FeatureStatistics(width), block_rows(width)
    for start in range(0, len(rows), size):
        statistics.update(features[rows[start : start + size]])
    return _from_covariance(statistics)


def _from_rows(features: np.ndarray) -> _Gaussian:
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    return _Gaussian(mean, (features - mean) / np.sqrt(len(features) - 1))


def _from_covariance(statistics: FeatureStatistics) -> _Gaussian:
    covariance = statistics.covariance
    least = len(covariance) * _EPSILON  # of the largest variance, what rounding cannot make
    try:
        lower = np.linalg.cholesky(covariance)
        if np.square(lower.diagonal()).min() > least * covariance.diagonal().max():
            return _Gaussian(statistics.mean, lower.T)
    except np.linalg.LinAlgError:
        pass  # it is singular
    variances, directions = np.linalg.eigh(covariance)
    kept = variances > least * variances[-1]
    factor = directions[:, kept] * np.sqrt(variances[kept])
    return _Gaussian(statistics.mean, factor.T)


def _distance(first: _Gaussian, second: _Gaussian) -> float:
    if np.array_equal(first.mean, second.mean) and np.array_equal(first.factor, second.factor):
        return 0.0
    spread = np.square(first.factor).sum() + np.square(second.factor).sum()
    overlap = _sum_of_singular_values(first.factor @ second.factor.T, _TOLERANCE * spread)
    distance = np.square(first.mean - second.mean).sum() + spread - 2 * overlap
    return max(float(distance), 0.0)


def _sum_of_singular_values(matrix: np.ndarray, tolerance: float) -> float:
    """The sum to within a tolerance, or as exactly as float64 can where that takes longer.

    Rounding shifts the eigenvalues w of M^T M by about e = eps max w at most, and thereby a root by
    e / sqrt(w). Where a w is near e, or the roots may err by more than the tolerance in all, the
    singular values are computed themselves.

    Source: Anderson et al., "LAPACK Users' Guide", 1999, section 4.7.
    """
    if not matrix.size:
        return 0.0
    if len(matrix) < matrix.shape[1]:
        matrix = matrix.T
    eigenvalues = np.linalg.eigvalsh(matrix.T @ matrix)
    error = _EPSILON * eigenvalues[-1]
    if eigenvalues[0] > len(eigenvalues) * error:  # so all of them have digits
        roots = np.sqrt(eigenvalues)
        if (error / roots).sum() <= tolerance:
            return float(roots.sum())
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept of the least-squares line through (x, y), and its standard error."""
    centred = x - x.mean()
    slope = (centred * y).sum() / np.square(centred).sum()
    value = y.mean() - slope * x.mean()
    variance = np.square(y - value - slope * x).sum() / (len(x) - 2)
    error = np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / np.square(centred).sum()))
    return float(value), float(error)

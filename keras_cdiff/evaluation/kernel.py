"""The kernel distance of two sets of features, KID if they are Inception's."""

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.evaluation.checks import block_rows, check_pair

_STRIP_ROWS = 1024


def kernel_distance(
    real: object,
    generated: object,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the kernel distance of two sets of features: the mean `squared_mmd` of subsets.

    Each subset is drawn without repetition, from `real` first, then from `generated`.

    Args:
        real: features (N, D), a memory map for instance.
        generated: features (M, D).
        num_subsets: number of pairs of subsets, >= 1.
        subset_size: rows of each, in [2, min(N, M)].
        seed: of the draws, a non-negative integer.

    Returns:
        mean and standard deviation (divisor `num_subsets`) over the subsets. The mean is unbiased,
        and may therefore be negative.

    Raises:
        ValueError: if the features are not two such sets, or a number is out of range.

    Source: Bińkowski et al., "Demystifying MMD GANs", 2018.
    """
    real, generated = check_pair(real, generated)
    smaller = min(len(real), len(generated))
    num_subsets = check_integer("num_subsets", num_subsets, 1, None, "the number of subsets")
    subset_size = check_integer(
        "subset_size", subset_size, 2, smaller, "the smaller set limits it; give more images"
    )
    rng = np.random.default_rng(check_integer("seed", seed, 0, None, "of the draws"))
    values = np.empty(num_subsets)
    for i in range(num_subsets):
        x, y = (
            features[np.sort(rng.choice(len(features), subset_size, replace=False))]
            for features in (real, generated)
        )
        values[i] = _squared_mmd(x, y)
    return float(values.mean()), float(values.std())


def squared_mmd(real: object, generated: object) -> float:
    """Returns the unbiased squared maximum mean discrepancy with the cubic polynomial kernel.

        k(x, y) = (x . y / D + 1)^3
        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    Kernels are computed in the dtype of the features, float32 at least, and summed in float64, so
    that the rounding of single terms averages out.

    Source: Gretton et al., "A Kernel Two-Sample Test", 2012, equation 3.
    """
    return _squared_mmd(*check_pair(real, generated))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    dtype = np.result_type(x, y, np.float32)
    x, y = (np.ascontiguousarray(features, dtype) for features in (x, y))
    n, m = len(x), len(y)
    within = _sum_within(x) / (n * (n - 1)) + _sum_within(y) / (m * (m - 1))
    return within - 2 * _sum_between(x, y) / (n * m)


def _sum_between(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of k(x_i, y_j)."""
    return sum(
        _sum_of_cubes(x[start : start + _STRIP_ROWS] @ y.T, x.shape[1])
        for start in range(0, len(x), _STRIP_ROWS)
    )


def _sum_within(x: np.ndarray) -> float:
    """The sum of k(x_i, x_j) over i != j; of the blocks off the diagonal one side is computed."""
    total, width = 0.0, x.shape[1]
    for start in range(0, len(x), _STRIP_ROWS):
        strip, rest = x[start : start + _STRIP_ROWS], x[start + _STRIP_ROWS :]
        square = strip @ strip.T  # BLAS computes half of it
        total -= _sum_of_cubes(square.diagonal()[None], width)
        total += _sum_of_cubes(square, width)
        if len(rest):
            total += 2 * _sum_of_cubes(strip @ rest.T, width)
    return total


def _sum_of_cubes(products: np.ndarray, width: int) -> float:
    """The sum of (product / D + 1)^3 in float64, in pieces that stay in the cache."""
    total, rows = 0.0, block_rows(max(1, products.shape[1]), 2**16)
    for start in range(0, len(products), rows):
        base = products[start : start + rows] / products.dtype.type(width)
        base += 1
        cube = base * base
        cube *= base
        total += float(cube.sum(dtype=np.float64))
    return total

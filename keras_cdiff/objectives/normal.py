"""The standard normal distribution, restricted to an interval, on the device and on the host."""

import math
import statistics

import keras
import numpy as np
from keras import ops

Tensor = keras.KerasTensor


def truncated_normal(uniform: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns z = Phi^-1(p), p uniform on [Phi(low), Phi(high)): a normal restricted to [low,
    high).

    Args:
        uniform: (B,), float32 in [0, 1).
        low: (), may be minus infinity.
        high: (), may be infinity.
    """
    # Phi(z) loses its digits near 1, so both tails are reached through the side where they are
    # small numbers: above the median 1 - Phi(z) = Phi(-z) takes the place of Phi(z).
    side = ops.where(low > 0.0, -1.0, 1.0)
    first, last = _cdf(side * low), _cdf(side * high)
    return side * _quantile(first + open_uniform(uniform) * (last - first))


def open_uniform(uniform: Tensor) -> Tensor:
    """Returns numbers in [0, 1) with 0, which stands for the first of 2^24 cells, moved inside."""
    return ops.maximum(uniform, 2.0**-25)


def host_quantile(probability: np.ndarray) -> np.ndarray:
    """Returns Phi^-1 of probabilities in [0, 1], in float64; infinite at the ends."""
    inverse = statistics.NormalDist().inv_cdf
    ends = {0.0: -math.inf, 1.0: math.inf}
    flat = np.asarray(probability, dtype=np.float64).ravel().tolist()
    return np.reshape([ends[p] if p in ends else inverse(p) for p in flat], np.shape(probability))


def _cdf(z: Tensor) -> Tensor:
    return 0.5 * ops.erfc(-z / math.sqrt(2.0))


def _quantile(probability: Tensor) -> Tensor:
    """Phi^-1, exact to float32 down to probabilities of 1e-37 and up to 1 - 2^-25."""
    below = probability < 0.5
    # The smaller of both tails; 1 - p has no rounding error from 1/2 on.
    tail = ops.where(
        below, ops.maximum(probability, 1e-37), ops.maximum(1.0 - probability, 2.0**-25)
    )
    # 2 p - 1 has lost the digits of a small p, where Phi's asymptotic form is a good start.
    square = -2.0 * ops.log(ops.minimum(tail, 1e-3))
    asymptotic = -ops.sqrt(square - ops.log(square) - math.log(2.0 * math.pi))
    central = math.sqrt(2.0) * ops.erfinv(2.0 * ops.maximum(tail, 1e-3) - 1.0)
    z = ops.where(tail < 1e-3, asymptotic, central)
    for _ in range(2):  # Newton's method on log Phi
        cdf = _cdf(z)
        slope = ops.exp(-0.5 * ops.square(z)) / (math.sqrt(2.0 * math.pi) * cdf)
        z = z - (ops.log(cdf) - ops.log(tail)) / slope
    return ops.where(below, z, -z)

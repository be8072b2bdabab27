"""Squared Euclidean distances of many points, tile by tile, and what can be said of their rounding.

A tile in float32 is a matrix product, |x|^2 + |y|^2 - 2 x . y, thousands of times as fast as
differences in float64. Its error has a bound, so float64 is needed only for the few pairs that the
bound leaves open.
"""

from collections.abc import Iterator

import numpy as np

_HALF_ULP = np.finfo(np.float32).eps / 2
_CHUNK_ELEMENTS = 2**22  # of differences in float64: 32 MiB
_STRIP_ROWS = 512


class Points:
    """Points in float32 around a common centre, scaled by a power of two, made when needed.

    Args:
        features: (N, D), floating-point.
        centre: (D,), which is subtracted: the smaller the norms, the smaller the rounding.
        scale: power of two by which all is multiplied, so that no square leaves float32's range.
    """

    def __init__(self, features: np.ndarray, centre: np.ndarray, scale: float):
        self.features, self._centre, self.scale = features, centre, scale
        self.norms = np.empty(len(features))  # squared
        for rows in slices(len(features), _STRIP_ROWS):
            block = self[rows].astype(np.float64)
            self.norms[rows] = np.einsum("nd,nd->n", block, block)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some points, float32."""
        block = self.features[rows] - self._centre
        block *= self.scale
        return block.astype(np.float32, copy=False)

    def blocks(self, size: int, start: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the points from `start` on as (rows, block of `size` points or fewer)."""
        for rows in slices(len(self), size, start):
            yield rows, self[rows]

    def tolerance(self, squared_radii: np.ndarray) -> np.ndarray:
        """Bounds the error of a float32 tile where it matters for a ball around each point.

        With u = 2^-24, a product of D terms errs by D u |x| |y| at most, in whatever order BLAS
        adds them up; the rounding of coordinates, norms and sums adds some u (|x| + |y|)^2. A point
        y on the ball of radius r around x has |y| <= |x| + r.

        Args:
            squared_radii: r^2 (N,), as taken from such tiles.

        Returns:
            error of |x - y|^2, float64 (N,).

        Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1.
        """
        width = self.features.shape[1]
        radius, norm = np.sqrt(np.maximum(squared_radii, 0, dtype=np.float64)), np.sqrt(self.norms)
        bound = 2 * (width + 2) * norm * (norm + radius) + 10 * (2 * norm + radius) ** 2
        return _HALF_ULP * bound + 4 * width * float(np.finfo(np.float32).tiny)

    def near(self, other: "Points", row: int, rows: np.ndarray) -> np.ndarray:
        """Some points in float64 as differences from a point of another set, or of this one."""
        block = self.features[rows].astype(np.float64)
        block -= other.features[row]
        block *= self.scale
        return block

    def exact(self, rows: np.ndarray, other: "Points", other_rows: np.ndarray) -> np.ndarray:
        """Returns |x - y|^2 of pairs, from differences in float64."""
        squared = np.empty(len(rows))
        for chunk in slices(len(rows), max(1, _CHUNK_ELEMENTS // self.features.shape[1])):
            difference = self.features[rows[chunk]].astype(np.float64)
            difference -= other.features[other_rows[chunk]]
            difference *= self.scale
            squared[chunk] = np.square(difference, out=difference).sum(axis=1)
        return squared


def around(features: np.ndarray, *more: np.ndarray) -> list[Points]:
    """Returns sets of features as points around the mean of the first."""
    sets = (features, *more)
    dtype = np.result_type(*sets, np.float32)
    centre = features.mean(axis=0, dtype=np.float64).astype(dtype)
    reach = max(
        np.abs(features[rows] - centre).max()
        for features in sets
        for rows in slices(len(features), _STRIP_ROWS)
    )
    limit = np.finfo(dtype).maxexp - 2
    scale = float(2.0 ** np.clip(-np.frexp(reach)[1], -limit, limit))
    return [Points(features, centre, scale) for features in sets]


def squared_distances(
    x: np.ndarray, x_norms: np.ndarray, y: np.ndarray, y_norms: np.ndarray
) -> np.ndarray:
    """Returns |x|^2 + |y|^2 - 2 x . y of x (n, D) and y (m, D) as a float32 tile (n, m), perhaps
    just below 0.
    """
    tile = x @ y.T
    tile *= -2
    tile += x_norms.astype(np.float32)[:, None]
    tile += y_norms.astype(np.float32)
    return tile


def bounded_squared_distances(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns squared distances (n, m) of float64 points around a nearby centre, and how far, at
    most, they are from those of `Points.exact`, which err too.
    """
    x_norms, y_norms = (np.einsum("nd,nd->n", a, a) for a in (x, y))
    tile = x @ y.T
    tile *= -2
    tile += x_norms[:, None]
    tile += y_norms
    error = np.square(np.sqrt(x_norms)[:, None] + np.sqrt(y_norms))
    error *= 2 * (x.shape[1] + 8) * float(np.finfo(np.float64).eps)
    error += x.shape[1] * float(np.finfo(np.float64).tiny)
    return tile, error


def float16_squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns squared distances >= 0, (n, m), rounded as guided-diffusion's evaluator does.

    Features, their squares, norms, products and both sums of |x|^2 - 2 x . y + |y|^2 are rounded to
    float16; if one of the distances is then not finite, the whole tile is float32's. Norms and
    products are added up in float32 and rounded once, as GPUs do.
    """
    x, y = x.astype(np.float32), y.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        tile = _rounded_squared_distances(x, y, lambda a: a.astype(np.float16).astype(np.float32))
        if not np.isfinite(tile).all():
            tile = _rounded_squared_distances(x, y, lambda a: a)
    return tile


def keep_smallest(kept: np.ndarray, tile: np.ndarray) -> None:
    """Updates the k smallest values of each row, (n, k), the k-th last, by those of a tile."""
    k = kept.shape[1]
    for strip in slices(len(tile), _STRIP_ROWS):
        rows = np.flatnonzero(tile[strip].min(axis=1) < kept[strip, -1]) + strip.start
        if rows.size:
            values = np.ascontiguousarray(tile[rows])
            if values.shape[1] > k:
                values.partition(k - 1, axis=1)
            values = np.concatenate([kept[rows], values[:, :k]], axis=1)
            values.partition(k - 1, axis=1)
            kept[rows] = values[:, :k]


def slices(length: int, size: int, start: int = 0) -> Iterator[slice]:
    """Yields slices of at most `size` that cover [start, length)."""
    for begin in range(start, length, size):
        yield slice(begin, min(begin + size, length))


def _rounded_squared_distances(x: np.ndarray, y: np.ndarray, rounded) -> np.ndarray:  # noqa: ANN001
    x, y = rounded(x), rounded(y)
    x_norms, y_norms = (rounded(rounded(np.square(a)).sum(axis=1)) for a in (x, y))
    tile = np.empty((len(x), len(y)), np.float32)
    for strip in slices(len(x), _STRIP_ROWS):
        products = rounded(x[strip] @ y.T)
        products = rounded(x_norms[strip, None] - rounded(2 * products))
        tile[strip] = np.maximum(rounded(products + y_norms), 0)
    return tile

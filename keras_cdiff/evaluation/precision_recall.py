"""Improved precision and recall: how many points lie within the other set's manifold.

The distances of 50,000 points to 50,000 others are 10 GB in float32, so they are made tile by tile,
each once, and only what a tile decides is kept: the k smallest of a row, or whether a point lies in
some ball.
"""

import numpy as np

from keras_cdiff.evaluation.checks import check_count, check_pair
from keras_cdiff.evaluation.distances import (
    Points,
    around,
    float16_squared_distances,
    keep_smallest,
    slices,
    squared_distances,
)

CONVENTIONS = ("exact", "adm")

_TILE = 1024  # rows and columns of a tile: 4 MiB, which stay in the cache
_ADM_TILE = 10_000  # guided-diffusion's, which decides in which type its distances are computed
_BALLS = 1024  # whose exact radii are found together
_MAX_OPEN = 2**20  # pairs kept open before they are decided


def precision_recall(
    real: object, generated: object, k: int = 3, convention: str = "exact"
) -> tuple[float, float]:
    """Returns improved precision and recall.

    The manifold of a set is the union of balls around its points, each of which reaches to the
    point's k-th nearest neighbour, the point itself not counted. Precision is the share of the
    generated points in the manifold of the real ones, recall the share of the real points in the
    manifold of the generated ones. The surface of a ball belongs to it.

    Beyond the features it needs some ten MB, for "adm" some hundred, whatever N and M.

    Args:
        real: features (N, D), a memory map for instance.
        generated: features (M, D).
        k: which neighbour gives the radius, in [1, min(N, M) - 1].
        convention: "exact": what distances from differences in float64 give. Tiles are computed in
            float32, and the pairs that their rounding leaves open in float64. "adm": squared
            distances, and all that they are made of, are rounded to float16 unless they overflow,
            as in guided-diffusion's evaluator. That moves points across surfaces, so use it only
            for numbers to stand beside theirs.

    Returns:
        precision and recall, in [0, 1].

    Raises:
        ValueError: if a set has fewer than two rows, is not finite floating-point numbers (N, D),
            the widths differ, `k` is out of range or the convention unknown.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative
        Models", 2019.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"`convention` must be one of {CONVENTIONS}. Received: convention={convention!r}"
        )
    real, generated = check_pair(real, generated)
    smaller = min(len(real), len(generated))
    k = check_count("k", k, 1, smaller - 1, "a point of the smaller set has no more neighbours")
    find = {"exact": _find_exact, "adm": _find_adm}[convention]
    generated_inside, real_inside = find(real, generated, k)
    return float(generated_inside.mean()), float(real_inside.mean())


def _find_exact(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Which generated points are in the real manifold, and which real ones in the generated."""
    real, generated = around(real, generated)
    of_real, of_generated = _Manifold(real, generated, k), _Manifold(generated, real, k)
    for rows, x in real.blocks(_TILE):
        for columns, y in generated.blocks(_TILE):
            tile = squared_distances(x, real.norms[rows], y, generated.norms[columns])
            of_generated.test(tile, rows, columns)
            of_real.test(tile.T, columns, rows)
    return of_real.decide(), of_generated.decide()


class _Manifold:
    """The balls around the centres, and which of the points are in one of them.

    Args:
        centres: the set whose manifold it is.
        points: the other set.
        k: which neighbour gives the radius.
    """

    def __init__(self, centres: Points, points: Points, k: int):
        self._centres, self._points, self._k = centres, points, k
        squared_radii = _squared_radii(centres, k)
        # The distance errs, and so does the radius that it is compared with.
        slack = 2 * centres.tolerance(squared_radii)
        self._surely = (squared_radii - slack).astype(np.float32)
        self._perhaps = (squared_radii + slack).astype(np.float32)
        self._exact_squared_radii = np.full(len(centres), np.nan)
        self._inside = np.zeros(len(points), bool)
        self._open: list[np.ndarray] = []  # pairs (point, ball)

    def test(self, tile: np.ndarray, points: slice, balls: slice) -> None:
        """Takes in the squared distances of some points (rows) to some centres (columns)."""
        self._inside[points] |= (tile <= self._surely[balls]).any(axis=1)
        perhaps = (tile <= self._perhaps[balls]).any(axis=1) & ~self._inside[points]
        rows = np.flatnonzero(perhaps)
        if rows.size:
            row, ball = np.nonzero(tile[rows] <= self._perhaps[balls])
            self._open.append(np.stack([points.start + rows[row], balls.start + ball], axis=1))
            if sum(map(len, self._open)) > _MAX_OPEN:
                self.decide()

    def decide(self) -> np.ndarray:
        """Decides the open pairs in float64, and returns which points are inside."""
        pairs = np.concatenate([np.empty((0, 2), np.int64), *self._open])
        self._open = []
        pairs = pairs[~self._inside[pairs[:, 0]]]
        # In rounds: each point's first pair, its second, two more, four more. A point on many balls
        # is then inside before all of them are measured.
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        place = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])
        rounds = np.frexp(place)[1]
        for number in np.unique(rounds):
            some = pairs[rounds == number]
            point, ball = some[~self._inside[some[:, 0]]].T
            self._find_exact_radii(np.unique(ball))
            squared = self._points.exact(point, self._centres, ball)
            self._inside[point[squared <= self._exact_squared_radii[ball]]] = True
        return self._inside

    def _find_exact_radii(self, balls: np.ndarray) -> None:
        """Finds the radii of some balls in float64, among the neighbours that float32 suggests."""
        centres = self._centres
        balls = balls[np.isnan(self._exact_squared_radii[balls])]
        for some in slices(len(balls), _BALLS):
            chosen = balls[some]
            x, candidates = centres[chosen], []
            for columns, y in centres.blocks(_TILE):
                tile = squared_distances(x, centres.norms[chosen], y, centres.norms[columns])
                row, other = np.nonzero(tile <= self._perhaps[chosen, None])
                other += columns.start
                different = chosen[row] != other
                row, other = row[different], other[different]
                candidates.append((row, centres.exact(chosen[row], centres, other)))
            row, squared = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
            order = np.lexsort((squared, row))
            first = np.searchsorted(row[order], np.arange(len(chosen)))
            self._exact_squared_radii[chosen] = squared[order[first + self._k - 1]]


def _squared_radii(points: Points, k: int) -> np.ndarray:
    """Squared distances to the k-th neighbours, from float32 tiles; each serves both its sides."""
    nearest = np.full((len(points), k), np.inf, np.float32)
    for rows, x in points.blocks(_TILE):
        for columns, y in points.blocks(_TILE, rows.start):
            same = rows == columns
            y = x if same else y  # BLAS computes half of x x^T
            tile = squared_distances(x, points.norms[rows], y, points.norms[columns])
            if same:
                np.fill_diagonal(tile, np.inf)
            else:
                keep_smallest(nearest[columns], tile.T)
            keep_smallest(nearest[rows], tile)
    return nearest[:, -1]


def _find_adm(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_find_exact`, with guided-diffusion's rounding and its order of arguments."""
    real_radii, generated_radii = (
        _adm_squared_radii(features, k) for features in (real, generated)
    )
    real_inside, generated_inside = (
        np.zeros(len(features), bool) for features in (real, generated)
    )
    for rows in slices(len(real), _ADM_TILE):
        for columns in slices(len(generated), _ADM_TILE):
            tile = float16_squared_distances(real[rows], generated[columns])
            real_inside[rows] |= (tile <= generated_radii[columns]).any(axis=1)
            generated_inside[columns] |= (tile <= real_radii[rows, None]).any(axis=0)
    return generated_inside, real_inside


def _adm_squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """The point itself is neighbour 0, wherever rounding has put it."""
    nearest = np.full((len(features), k + 1), np.inf, np.float32)
    for rows in slices(len(features), _ADM_TILE):
        for columns in slices(len(features), _ADM_TILE):
            tile = float16_squared_distances(features[rows], features[columns])
            keep_smallest(nearest[rows], tile)
    return nearest[:, -1]

"""Improved precision and recall: how many points lie within the other set's manifold.

The distances of 50,000 points to 50,000 others are 10 GB in float32, so they are made tile by tile,
each once, and only what a tile decides is kept: the k smallest of a row, or whether a point lies in
some ball.
"""

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.evaluation.checks import check_pair
from keras_cdiff.evaluation.distances import (
    Points,
    around,
    bounded_squared_distances,
    float16_squared_distances,
    keep_smallest,
    slices,
    squared_distances,
)

CONVENTIONS = ("exact", "adm")

_TILE = 1024  # rows and columns of a tile: 4 MiB, which stay in the cache
_ADM_TILE = 10_000  # guided-diffusion's, which decides in which type its distances are computed
_BALLS = 1024  # whose exact radii are found together
_FEW = 64  # pairs of a ball that are measured one by one
_MAX_OPEN = 2**20  # pairs kept open before they are decided


def precision_recall(
    real: object, generated: object, k: int = 3, convention: str = "exact"
) -> tuple[float, float]:
    """Returns improved precision and recall.

    The manifold of a set is the union of balls around its points, each of which reaches to the
    point's k-th nearest neighbour, the point itself not counted. Precision is the share of the
    generated points in the manifold of the real ones, recall the share of the real points in the
    manifold of the generated ones. The surface of a ball belongs to it.

    Args:
        real: features (N, D), a memory map for instance.
        generated: features (M, D).
        k: which neighbour gives the radius, in [1, min(N, M) - 1].
        convention: "exact": what distances from differences in float64 give. "adm": squared
            distances, and all that they are made of, are rounded to float16 unless they overflow,
            as in guided-diffusion's evaluator, for numbers to stand beside theirs.

    Returns:
        precision and recall, in [0, 1].

    Raises:
        ValueError: if the features are not two such sets, or an argument is out of range.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative
        Models", 2019.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"`convention` must be one of {CONVENTIONS}. Received: convention={convention!r}"
        )
    real, generated = check_pair(real, generated)
    smaller = min(len(real), len(generated))
    k = check_integer("k", k, 1, smaller - 1, "a point of the smaller set has no more neighbours")
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
    """The balls around the centres, and which of the points are in one of them."""

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
            self._inside[point[self._are_within(point, ball)]] = True
        return self._inside

    def _are_within(self, point: np.ndarray, ball: np.ndarray) -> np.ndarray:
        """Whether each pair's point is in its ball, whose exact radius is known."""
        within, left = np.zeros(len(point), bool), np.arange(len(point))

        def measure(pairs: np.ndarray) -> None:
            squared = self._points.exact(point[pairs], self._centres, ball[pairs])
            within[pairs] = squared <= self._exact_squared_radii[ball[pairs]]

        # Balls of many points, as in sets that have collapsed, are decided by matrix products.
        while len(left) > _FEW // 4 * len(balls := np.unique(ball[left])):
            first = ball[left[0]]
            squared = self._centres.exact(np.full(len(balls), first), self._centres, balls)
            crowd = balls[(squared <= self._perhaps[first]) | (balls == first)]
            chosen = np.isin(ball[left], crowd)
            pairs, left = left[chosen], left[~chosen]
            points, row = np.unique(point[pairs], return_inverse=True)
            column = np.searchsorted(crowd, ball[pairs])
            for rows in slices(len(points), _TILE):
                x = self._points.near(self._centres, first, points[rows])
                for columns in slices(len(crowd), _TILE):
                    some = (row >= rows.start) & (row < rows.stop)
                    some &= (column >= columns.start) & (column < columns.stop)
                    if not some.any():
                        continue
                    y = self._centres.near(self._centres, first, crowd[columns])
                    tile, error = bounded_squared_distances(x, y)
                    place = row[some] - rows.start, column[some] - columns.start
                    excess = tile[place] - self._exact_squared_radii[ball[pairs[some]]]
                    within[pairs[some]] = excess <= -error[place]
                    measure(pairs[some][np.abs(excess) <= error[place]])
        measure(left)
        return within

    def _find_exact_radii(self, balls: np.ndarray) -> None:
        """Finds the radii of some balls in float64, among the neighbours that float32 suggests."""
        centres, few = self._centres, max(_FEW, 4 * self._k)
        balls, crowded = balls[np.isnan(self._exact_squared_radii[balls])], []
        for some in slices(len(balls), _BALLS):
            chosen = balls[some]
            x, pairs, counts = centres[chosen], [], np.zeros(len(chosen), np.int64)
            for columns, y in centres.blocks(_TILE):
                tile = squared_distances(x, centres.norms[chosen], y, centres.norms[columns])
                suggested = tile <= self._perhaps[chosen, None]
                counts += suggested.sum(axis=1)
                suggested[counts > few] = False
                row, other = np.nonzero(suggested)
                pairs.append((row, other + columns.start))
            row, other = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            kept = counts[row] <= few
            self._take_radii(chosen, row[kept], other[kept])
            crowded.append(chosen[counts > few])
        left = np.concatenate(crowded) if crowded else balls
        while left.size:
            left = self._find_crowded_radii(left, few)

    def _find_crowded_radii(self, balls: np.ndarray, few: int) -> np.ndarray:
        """Finds the radii of the first of some balls and of others beside it.

        Around the first, float64 tells distances apart that float32 around the mean does not.

        Returns:
            the balls that are left.
        """
        centres, first = self._centres, balls[0]
        reach = 9 * self._perhaps[first]
        tolerance = centres.tolerance(np.full(len(centres), reach))[first]
        one = np.array([first])
        squared = np.concatenate(
            [
                squared_distances(centres[one], centres.norms[one], y, centres.norms[columns])[0]
                for columns, y in centres.blocks(_TILE)
            ]
        )
        near = np.flatnonzero(squared <= reach)
        # The neighbours of a ball beside the first are among those near the first.
        farthest = np.sqrt(np.maximum(squared[balls], 0) + tolerance)
        farthest += np.sqrt(self._perhaps[balls])
        beside = farthest <= np.sqrt(max(reach - tolerance, 0))
        beside[0] = True
        group = balls[beside][:_BALLS]
        x = centres.near(centres, first, group)
        equal = sum(
            int((~centres.near(centres, first, near[columns]).any(axis=1)).sum())
            for columns in slices(len(near), _TILE)
        )
        if equal > self._k:
            group = group[~x.any(axis=1)]
            self._exact_squared_radii[group] = 0
            return np.setdiff1d(balls, group)

        def tiles():
            for columns in slices(len(near), _TILE):
                y = centres.near(centres, first, near[columns])
                tile, error = bounded_squared_distances(x, y)
                tile[group[:, None] == near[columns]] = np.inf
                yield columns, tile, error

        nearest = np.full((len(group), self._k), np.inf)
        for _, tile, error in tiles():
            keep_smallest(nearest, tile + error)
        pairs, counts = [], np.zeros(len(group), np.int64)
        for columns, tile, error in tiles():
            suggested = tile - error <= nearest[:, -1:]
            counts += suggested.sum(axis=1)
            suggested[1:][counts[1:] > few] = False
            row, other = np.nonzero(suggested)
            pairs.append((row, near[other + columns.start]))
        row, other = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        found = counts <= few
        found[0] = True
        kept = found[row]
        self._take_radii(group, row[kept], other[kept])
        return np.setdiff1d(balls, group[found])

    def _take_radii(self, balls: np.ndarray, row: np.ndarray, other: np.ndarray) -> None:
        """Takes the k-th smallest exact distance of balls[row] to other points as its radius."""
        different = balls[row] != other
        row, other = row[different], other[different]
        squared = self._centres.exact(balls[row], self._centres, other)
        order = np.lexsort((squared, row))
        rows, first = np.unique(row[order], return_index=True)
        self._exact_squared_radii[balls[rows]] = squared[order[first + self._k - 1]]


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

"""Mean and covariance of features, gathered batch by batch and process by process."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import write_whole
from keras_cdiff.evaluation.checks import block_rows, check_features, check_finite

# How far float32 arithmetic in another tool may take a covariance from one that is symmetric and
# positive semidefinite, relative to its largest element or its norm.
_ROUNDING = 1e-5

_STORED = ("mu", "sigma", "num_images", "description")


class FeatureStatistics:
    """Running mean and covariance of features in float64.

    It keeps the number of rows n, their mean m, and M = sum_i (x_i - m)(x_i - m)^T. Two sets merge
    exactly, so neither the size of batches nor the split into processes matters beyond rounding:

        d = m_b - m_a,   n = n_a + n_b,   m = m_a + d n_b / n,   M = M_a + M_b + d d^T n_a n_b / n

    Args:
        width: D, the number of features of an image.

    Attributes:
        width: D.
        count: rows seen so far; None for statistics from a file that does not tell.
        description: a dict that describes where the features come from.

    Raises:
        ValueError: if `width` is not a positive integer.

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances", 1979.
    """

    def __init__(self, width: int):
        self.width = check_integer("width", width, 1, None, "the number of features of an image")
        self.count: int | None = 0
        self.description: dict = {}
        self._mean = np.zeros(self.width)
        self._scatter = np.zeros((self.width, self.width))
        self._covariance: np.ndarray | None = None  # of a file without a count

    @classmethod
    def of(cls, features: object, name: str = "features") -> "FeatureStatistics":
        """Returns the statistics of features (N, D), N >= 2, a memory map for instance; `name` is
        what messages call them.

        Raises:
            ValueError: if the features are not a finite floating-point array of that shape.
        """
        features = check_features(name, features, finite=False)
        statistics = cls(features.shape[1])
        statistics._add(*_moments(name, features))
        return statistics

    def copy(self) -> "FeatureStatistics":
        """Returns statistics of the same rows that share nothing with these."""
        return copy.deepcopy(self)

    @property
    def mean(self) -> np.ndarray:
        """The mean, float64 (D,)."""
        if self.count == 0:
            raise ValueError("There is no mean yet: call update() first. Received: count=0")
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """The covariance with divisor N - 1, float64 (D, D)."""
        if self._covariance is not None:
            return self._covariance.copy()
        if self.count < 2:
            raise ValueError(
                "A covariance needs at least two rows: call update() with more. "
                f"Received: count={self.count}"
            )
        return self._scatter / (self.count - 1)

    def update(self, features: object) -> "FeatureStatistics":
        """Adds the rows of features (B, D), B >= 1, or on an error none; returns these statistics.

        Raises:
            ValueError: if the features are not a finite floating-point array of that shape, or the
                statistics come from a file without a count.
        """
        features = check_features("features", features, min_rows=1, finite=False)
        self._check_fits(features.shape[1])
        self._check_counted()
        self._add(*_moments("features", features))
        return self

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Adds the rows that another object has seen; returns these statistics.

        Raises:
            ValueError: if the widths differ, or one comes from a file without a count.
        """
        self._check_fits(other.width)
        self._check_counted()
        other._check_counted()
        if other.count:
            self._add(other.count, other._mean, other._scatter)
        return self

    def save(self, path: str | os.PathLike, description: Mapping | None = None) -> None:
        """Writes mu, sigma, num_images and the description to an .npz, atomically; pytorch-fid and
        EDM read such a file.

        Args:
            path: a name that ends in .npz; its folder is made if missing.
            description: what JSON can hold; None for that of the object.

        Raises:
            ValueError: if there are fewer than two rows, the name ends otherwise, or the
                description does not fit JSON.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(
                f"The name of a statistics file must end in .npz. Received: path={str(path)!r}"
            )
        description = dict(self.description if description is None else description)
        try:
            text = json.dumps(description, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`description` must be a dict that strict JSON can hold. "
                f"Received: description={description!r} ({error})"
            ) from error
        arrays = {"mu": self.mean, "sigma": self.covariance, "description": np.array(text)}
        if self.count is not None:
            arrays["num_images"] = np.int64(self.count)
        write_whole(path, lambda temporary: np.savez(temporary, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureStatistics":
        """Reads a statistics file of `save`, pytorch-fid, clean-fid, EDM or guided-diffusion.

        The last four do not tell how many images they are of: the count is then None, and such
        statistics can be compared but neither updated nor merged.

        Raises:
            ValueError: if the file is missing, damaged or of another kind, mu (D,) and sigma (D, D)
                are not finite, or sigma is no covariance: not symmetric or not positive
                semidefinite, beyond the rounding of float32.
        """
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _STORED if name in file.files}
            mean, covariance = arrays["mu"], arrays["sigma"]
            count = int(arrays["num_images"]) if "num_images" in arrays else None
            description = json.loads(str(arrays["description"])) if "description" in arrays else {}
        # What NumPy raises for files that are cut short or of another kind is of many classes.
        except Exception as error:
            raise ValueError(
                "A statistics file must be a whole .npz with the arrays mu and sigma: compute it "
                f"again. Received: path={str(path)!r} ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(description, dict):
            raise ValueError(
                "The description in a statistics file must be a JSON object: write the file with "
                f"save(). Received: path={str(path)!r}, description={description!r}"
            )
        problem = _find_problem(mean, covariance, count)
        if problem:
            raise ValueError(
                "A statistics file must hold the mean mu (D,) and the covariance sigma (D, D) of "
                f"one set: compute it again. Received: path={str(path)!r}, where {problem}"
            )
        statistics = cls(len(mean))
        statistics.count = count
        statistics.description = description
        statistics._mean = mean.astype(np.float64)
        covariance = covariance.astype(np.float64)
        covariance = (covariance + covariance.T) / 2
        if count is None:
            statistics._covariance = covariance
        else:
            statistics._scatter = covariance * (count - 1)
        return statistics

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        difference = mean - self._mean
        self._scatter += scatter
        self._scatter += _square(difference * np.sqrt(self.count / total * count))
        self._mean += difference * (count / total)
        self.count = total

    def _check_fits(self, width: int) -> None:
        if width != self.width:
            raise ValueError(
                f"These statistics are of features of width {self.width}: take all features from "
                f"the same layer of the same extractor. Received: width={width}"
            )

    def _check_counted(self) -> None:
        if self.count is None:
            raise ValueError(
                "Statistics from a file without num_images cannot be added to: compute them from "
                "the images. Received: count=None"
            )


def _moments(name: str, features: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns count, mean and scatter of features (B, D), B >= 1."""
    # Blocks are summed around the mean of the first, near enough to that of all.
    count, width = features.shape
    rows = block_rows(width)
    # What is not finite makes the sums so: a check of its own would read everything once more.
    with np.errstate(invalid="ignore", over="ignore"):
        centre = features[:rows].mean(axis=0, dtype=np.float64)
        total, scatter = np.zeros(width), np.zeros((width, width))
        for start in range(0, count, rows):
            block = features[start : start + rows] - centre
            total += block.sum(axis=0)
            scatter += block.T @ block
        scatter -= _square(total / np.sqrt(count))
    if not np.isfinite(total).all() or not np.isfinite(scatter.diagonal()).all():
        check_finite(name, features)
        raise ValueError(
            f"`{name}` must be small enough to be squared in float64: scale the features down. "
            f"Received: |{name}| up to {np.abs(features).max():.3g}"
        )
    np.fill_diagonal(scatter, np.maximum(scatter.diagonal(), 0))  # of constant features
    return count, centre + total / count, scatter


def _square(vector: np.ndarray) -> np.ndarray:
    """v v^T, symmetric to the last digit."""
    return np.outer(vector, vector)


def _find_problem(mean: np.ndarray, covariance: np.ndarray, count: int | None) -> str | None:
    """Returns what is wrong with the moments in a file, or None."""
    for name, array in (("mu", mean), ("sigma", covariance)):
        if not np.issubdtype(array.dtype, np.floating):
            return f"{name} has the dtype {array.dtype}"
        if not np.isfinite(array).all():
            return f"{name} is not finite"
    if mean.ndim != 1 or len(mean) < 1:
        return f"mu has the shape {mean.shape}"
    if covariance.shape != (len(mean), len(mean)):
        return f"sigma has the shape {covariance.shape} and mu {mean.shape}"
    if np.abs(covariance - covariance.T).max() > _ROUNDING * np.abs(covariance).max():
        return "sigma is not symmetric"
    if not _is_semidefinite(covariance):
        return "sigma is not positive semidefinite, so it has negative variances in some direction"
    if count is not None and count < 2:
        return f"num_images is {count}"
    return None


def _is_semidefinite(covariance: np.ndarray) -> bool:
    """Whether no eigenvalue is below 0, beyond rounding: by a factorization, which costs little."""
    largest = np.abs(covariance).max()
    if largest == 0:
        return True
    scaled = covariance.astype(np.float64) / largest  # whose norm cannot overflow
    scaled[np.diag_indices_from(scaled)] += _ROUNDING * np.linalg.norm(scaled)
    try:
        np.linalg.cholesky(scaled)
    except np.linalg.LinAlgError:
        return False
    return True

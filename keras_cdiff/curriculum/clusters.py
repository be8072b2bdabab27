"""Clusters: partitions of the noise range into contiguous intervals C_1 (least noise) .. C_N.

Edges are in the schedule's native coordinate, which grows with noise. Everything here is NumPy in
float64 on the host.
"""

import dataclasses
import itertools
import json
import os
import warnings
from pathlib import Path

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import write_whole

ORDERS = ("easy_to_hard", "hard_to_easy")

# Cells into which `snr_clusters` cuts the levels of a continuous schedule.
GRID_CELLS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of the noise range: cluster i is [edges[i - 1], edges[i]), i = 1..N.

    Args:
        edges: the N + 1 edges e_0 < ... < e_N in the schedule's native coordinate (integers
            for timesteps). The first may be minus infinity, the last infinity. Kept as a read-only
            float64 array.
        name: how the partition came about.
        coordinate: the schedule's coordinate that the edges are in, such as "sigma", if it is
            known: a model with another one refuses them.

    Raises:
        ValueError: if there are fewer than two edges, or they do not ascend, or an inner one is not
            finite.
    """

    edges: np.ndarray
    name: str = "custom"
    coordinate: str | None = None

    def __post_init__(self):
        edges = np.array(self.edges, dtype=np.float64)
        _check_edges(edges)
        edges.flags.writeable = False
        object.__setattr__(self, "edges", edges)

    @property
    def num_clusters(self) -> int:
        """N."""
        return len(self.edges) - 1

    @property
    def full_interval(self) -> tuple[float, float]:
        """The union of all clusters, [e_0, e_N)."""
        return float(self.edges[0]), float(self.edges[-1])

    def stage_interval(
        self, stage: int, order: str = "easy_to_hard", cumulative: bool = True
    ) -> tuple[float, float]:
        """Returns the noise interval [low, high) that a stage trains on.

        | order        | cumulative     | current cluster alone  |
        |--------------|----------------|------------------------|
        | easy_to_hard | [e_{N-n}, e_N) | [e_{N-n}, e_{N-n+1})   |
        | hard_to_easy | [e_0, e_n)     | [e_{n-1}, e_n)         |

        Args:
            stage: n = 1..N.
            order: "easy_to_hard" (much noise first) or "hard_to_easy".
            cumulative: whether a stage keeps the clusters of the stages before it.

        Raises:
            ValueError: if the stage is outside 1..N or the order is unknown.
        """
        if stage not in range(1, self.num_clusters + 1):
            raise ValueError(
                f"`stage` must be one of 1..{self.num_clusters}, the number of clusters. "
                f"Received: stage={stage!r}"
            )
        if order not in ORDERS:
            raise ValueError(f"`order` must be one of {ORDERS}. Received: order={order!r}")
        stage = int(stage)
        if order == "easy_to_hard":
            low = self.num_clusters - stage
            high = self.num_clusters if cumulative else low + 1
        else:
            high = stage
            low = 0 if cumulative else high - 1
        return float(self.edges[low]), float(self.edges[high])

    def get_config(self) -> dict:
        """Returns the arguments of the constructor, fit for strict JSON: infinities as strings."""
        edges = [edge if np.isfinite(edge) else str(edge) for edge in self.edges.tolist()]
        known = {} if self.coordinate is None else {"coordinate": self.coordinate}
        return {"edges": edges, "name": self.name, **known}

    @classmethod
    def from_config(cls, config: dict) -> "Clusters":
        return cls(**{**config, "edges": [float(edge) for edge in config["edges"]]})

    def check_coordinate(self, coordinate: str) -> None:
        """Raises a ValueError if the edges are known to be in another coordinate."""
        if self.coordinate not in (None, coordinate):
            raise ValueError(
                f"The clusters must be in the schedule's coordinate, {coordinate}: take others, "
                "or another preset. "
                f"Received: clusters {self.name!r} in {self.coordinate}"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the clusters to a JSON file, with edges, name and coordinate, atomically.

        Raises:
            OSError: if the file cannot be written.
        """
        text = json.dumps(self.get_config(), indent=2, allow_nan=False) + "\n"
        write_whole(path, lambda temporary: temporary.write_text(text))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Clusters":
        """Reads the clusters that `save` wrote.

        Raises:
            ValueError: if there is no such file, or it holds no clusters.
        """
        try:
            config = json.loads(Path(path).read_text())
            return cls.from_config({"name": "custom", **config})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                'A file of clusters must be JSON such as {"edges": [0, 100, 1000], "name": "mine"},'
                " as `Clusters.save` writes it, with edges that ascend. "
                f"Received: clusters={str(path)!r} ({type(error).__name__}: {error})"
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Clusters):
            return NotImplemented
        return self.name == other.name and np.array_equal(self.edges, other.edges)

    def __hash__(self) -> int:
        return hash((self.name, self.edges.tobytes()))


def uniform_clusters(schedule: object, num_clusters: int) -> Clusters:
    """Cuts the schedule's bounds into clusters of equal width in the native coordinate.

    For timesteps e_i = round(i T / N), so widths differ by at most one. A continuous schedule's
    edges end at its bounds: an unbounded density, such as EDM's, is cut off there.

    Args:
        schedule: a `keras_cdiff.schedules.Schedule`.
        num_clusters: N >= 1, and at most T for timesteps.

    Raises:
        ValueError: if `num_clusters` is out of range.
    """
    num_timesteps = getattr(schedule, "num_timesteps", None)
    num_clusters = check_num_clusters(num_clusters, num_timesteps)
    if num_timesteps is None:
        return Clusters(np.linspace(*schedule.bounds, num_clusters + 1), "uniform")
    return Clusters(np.round(np.arange(num_clusters + 1) * num_timesteps / num_clusters), "uniform")


def snr_clusters(schedule: object, num_clusters: int, snr: str = "log") -> Clusters:
    """Cuts the noise range into clusters of similar signal-to-noise ratio.

    The partition of t = 0..T-1 that minimises sum over clusters [l..r] of sum_t |v_t - v_c|, with
    v = log SNR and c = round((l + r + 1) / 2), half to even, found exactly by dynamic programming.

    The bounds of a continuous schedule are first cut into 1,000 cells, each standing for the level
    in its middle: of equal width in ln(sigma) where the image is not scaled (alpha = 1, as in EDM
    and VE), of equal width in the level otherwise. The outer edges are those of the schedule's
    domain: 0 and infinity for EDM, whose bounds are a sampler's alone.

    Args:
        schedule: a `keras_cdiff.schedules.Schedule`.
        num_clusters: N >= 1, and at most T for timesteps.
        snr: "log" for log SNR; "raw" for SNR itself, which crowds nearly all clusters into the
            least noisy steps.

    Raises:
        ValueError: if `num_clusters` is out of range or `snr` is unknown.

    Warns:
        UserWarning: if a cluster holds a single timestep.

    Source: cost from Go et al., "Addressing Negative Transfer in Diffusion Models", 2023 (interval
        clustering by SNR).
    """
    if snr not in ("log", "raw"):
        raise ValueError(f'`snr` must be "log" or "raw". Received: snr={snr!r}')
    num_timesteps = getattr(schedule, "num_timesteps", None)
    num_clusters = check_num_clusters(num_clusters, num_timesteps or GRID_CELLS)
    if num_timesteps is None:
        borders, levels = _grid(schedule)
    else:
        borders, levels = np.arange(num_timesteps + 1.0), np.arange(num_timesteps)
    alpha, sigma = schedule.alpha_sigma(levels)
    log_snr = 2.0 * (np.log(alpha) - np.log(sigma))
    values = log_snr if snr == "log" else np.exp(log_snr)
    clusters = Clusters(borders[_optimal_edges(values, num_clusters)], f"snr_{snr}")
    if num_timesteps is not None:
        _warn_of_single_timesteps(clusters)
    return clusters


def quantile_clusters(objective: object, num_clusters: int) -> Clusters:
    """Cuts the noise range into clusters that are equally probable under the objective's density.

    e_i = F^-1(i / N). For EDM e_i = exp(P_mean + P_std Phi^-1(i / N)), 0 and infinity at the ends.

    Args:
        objective: a `keras_cdiff.objectives.Objective`.
        num_clusters: N >= 1, and at most T for timesteps.

    Raises:
        ValueError: if `num_clusters` is out of range.
    """
    num_clusters = check_num_clusters(num_clusters, getattr(objective, "num_timesteps", None))
    edges = objective.host_quantile(np.arange(num_clusters + 1) / num_clusters)
    return Clusters(edges, "quantile")


def _check_edges(edges: np.ndarray) -> None:
    if edges.ndim != 1 or len(edges) < 2:
        raise ValueError(
            "`edges` must be a flat list of at least two edges, which bound one cluster. "
            f"Received: edges of shape {edges.shape}"
        )
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        if not low < high:
            raise ValueError(
                f"`edges` must ascend strictly: sort them and drop repeated ones. Received: "
                f"edges[{index}]={low}, edges[{index + 1}]={high}"
            )


def check_num_clusters(num_clusters: int, most: int | None) -> int:
    """Returns a number of clusters, checked to be at least 1 and at most `most`, if there is one.

    Raises:
        ValueError: if it is out of range.
    """
    num_clusters = check_integer("num_clusters", num_clusters)
    if most is not None and num_clusters > most:
        raise ValueError(
            f"`num_clusters` must be at most {most}, the number of noise levels that there are to "
            f"divide. Received: num_clusters={num_clusters}"
        )
    return num_clusters


def _grid(schedule: object) -> tuple[np.ndarray, np.ndarray]:
    """Returns the borders of the cells of a continuous schedule, and the level inside each cell."""
    bounds = np.array(schedule.bounds, dtype=np.float64)
    # Halves of cells: even entries are borders, odd ones the middles.
    if np.all(schedule.alpha_sigma(bounds)[0] == 1.0):
        points = np.geomspace(*bounds, 2 * GRID_CELLS + 1)
    else:
        points = np.linspace(*bounds, 2 * GRID_CELLS + 1)
    borders, levels = points[::2].copy(), points[1::2]
    borders[[0, -1]] = schedule.domain
    return borders, levels


def _optimal_edges(values: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns the N + 1 edges, 0..T, of the cheapest partition of `values` (T,) into N clusters.

    best_n[j] = min_i best_{n-1}[i] + cost of [i, j). Among equally cheap partitions the one whose
    last cluster starts first is taken, and so on downwards.
    """
    cost = _cost_table(values)
    num_values = len(values)
    best = [np.full(num_values, np.inf)]
    best[0][0] = 0.0
    # Blocks of rows fit the processor's cache, and need no columns past their last row.
    blocks = [slice(start, start + 64) for start in range(0, num_values, 64)]
    for _ in range(num_clusters - 1):
        rows = [(cost[b, : b.stop] + best[-1][: b.stop]).min(axis=1) for b in blocks]
        best.append(np.concatenate(rows)[:num_values])
    edges = [num_values]
    for cheapest in reversed(best):
        candidates = cheapest + cost[edges[-1]]
        # Costs closer than their rounding errors are equal, or the platform would choose.
        edges.append(int(np.argmax(candidates <= candidates.min() * (1.0 + 1e-12))))
    return np.array(edges[::-1])


def _cost_table(values: np.ndarray) -> np.ndarray:
    """Returns cost[j, i] of the cluster [i, j), (T + 1, T), infinite where that is empty.

    The cost of the timesteps l..r is sum_t |v_t - v_c|, c = round((l + r + 1) / 2), half to even,
    and 0 for a single one. Memory grows with T^2: 8 MB a table for T = 1000.
    """
    num_values = len(values)
    distance = np.abs(values[:, None] - values)
    # Sums outwards from each centre, so that no digits cancel.
    below = np.cumsum(np.tril(distance)[:, ::-1], axis=1)[:, ::-1]
    above = np.cumsum(np.triu(distance), axis=1)
    last, first = np.tril_indices(num_values, -1)
    centre = np.round((first + last + 1) / 2).astype(np.intp)
    cost = np.full((num_values + 1, num_values), np.inf)
    cost[last + 1, first] = below[centre, first] + above[centre, last]
    np.fill_diagonal(cost[1:], 0.0)
    return cost


def _warn_of_single_timesteps(clusters: Clusters) -> None:
    single = np.flatnonzero(np.diff(clusters.edges) == 1.0)
    if len(single):
        named = ", ".join(f"{i + 1} (timestep {clusters.edges[i]:.0f})" for i in single)
        warnings.warn(
            f"{len(single)} of {clusters.num_clusters} clusters hold a single timestep each: "
            f"{named}. Use fewer clusters, or uniform_clusters.",
            stacklevel=3,
        )

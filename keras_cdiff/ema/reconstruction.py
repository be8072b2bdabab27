"""Averages of other widths, made after training from stored ones."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keras_cdiff.ema.decays import power_exponent


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A power-function average at one moment of training.

    Args:
        iteration: training steps taken, >= 1.
        width: relative width of its profile, that of its `PowerDecay`.
        weights: the averaged weights by name.
    """

    iteration: int
    width: float
    weights: Mapping[str, np.ndarray]


def profile_products(a: Sequence[tuple], b: Sequence[tuple]) -> np.ndarray:
    """Returns the inner products of power-function profiles, each given as (iteration, width).

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], so that for t_a <= t_b
    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) (t_a / t_b)^gamma_b / ((gamma_a + gamma_b + 1) t_b).

    Returns:
        float64 array (len(a), len(b)).

    Source: Karras et al., 2024, appendix C.2.
    """

    def times_and_exponents(profiles: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
        times = np.array([iteration for iteration, _ in profiles], dtype="float64")
        return times, np.array([power_exponent(width) for _, width in profiles])

    times_a, exponents_a = (values[:, None] for values in times_and_exponents(a))
    times_b, exponents_b = (values[None, :] for values in times_and_exponents(b))
    ratio = times_a / times_b
    power = np.where(ratio < 1.0, exponents_b, -exponents_a)
    return (
        (exponents_a + 1.0)
        * (exponents_b + 1.0)
        * ratio**power
        / ((exponents_a + exponents_b + 1.0) * np.maximum(times_a, times_b))
    )


def reconstruction_coefficients(
    profiles: Sequence[tuple], width: float, iteration: int
) -> np.ndarray:
    """Returns the coefficients of the sum of stored profiles that comes closest to another one.

    Args:
        profiles: (iteration, width) of each stored average.
        width: relative width of the profile sought.
        iteration: moment of training of the profile sought.

    Returns:
        float64 array (len(profiles),), the least-squares solution.

    Source: Karras et al., 2024, appendix C.2.
    """
    gram = profile_products(profiles, profiles)
    target = profile_products(profiles, [(iteration, width)])[:, 0]
    norms = np.sqrt(np.diag(gram))  # profiles of unit norm keep the system well conditioned
    solution, *_ = np.linalg.lstsq(gram / np.outer(norms, norms), target / norms, rcond=None)
    return solution / norms


def reconstruct(
    snapshots: Sequence[Snapshot], width: float, iteration: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the weights that an average of another width would have had.

    The more snapshots there are, and of the more widths (two suffice), the closer it comes. Widths
    between those that were kept are safe; wider than the widest loses what no snapshot holds.

    Args:
        snapshots: `Snapshot`s of one training, or objects with the same attributes; the weights
            of one at a time are held in memory.
        width: relative width wanted, in (0, 1 / sqrt(12)].
        iteration: moment of training wanted, between 1 and the last snapshot's, best one at which
            there is a snapshot; None for the last.

    Returns:
        float32 arrays by name.

    Raises:
        ValueError: if there are no snapshots, they do not fit each other, or width or iteration
            are out of range.
    """
    snapshots = list(snapshots)
    if not snapshots:
        raise ValueError("`snapshots` must hold at least one average. Received: no snapshots")
    profiles = [(snapshot.iteration, snapshot.width) for snapshot in snapshots]
    last = max(time for time, _ in profiles)
    iteration = last if iteration is None else iteration
    if not 1 <= iteration <= last or min(time for time, _ in profiles) < 1:
        raise ValueError(
            f"`iteration` must lie between 1 and the last snapshot's, {last}. "
            f"Received: iteration={iteration}"
        )
    coefficients = reconstruction_coefficients(profiles, width, iteration)
    total, shapes = {}, None
    for coefficient, snapshot in zip(coefficients, snapshots, strict=True):
        weights = snapshot.weights
        found = {name: np.shape(value) for name, value in weights.items()}
        if shapes not in (None, found):
            raise ValueError(
                "The snapshots must be of one network: the same names and shapes of weights. "
                f"Received: snapshots that differ at iteration={snapshot.iteration}, "
                f"width={snapshot.width}"
            )
        shapes = found
        for name, value in weights.items():
            total[name] = total.get(name, 0.0) + coefficient * np.asarray(value, dtype="float64")
    return {name: np.asarray(value, dtype="float32") for name, value in total.items()}

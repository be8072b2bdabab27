"""Decay profiles of the exponential moving averages of the weights, and averages of other widths
made from stored ones.

Each training step does: average = decay average + (1 - decay) weights.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

Tensor = keras.KerasTensor


class Decay(abc.ABC):
    """Base of all decay profiles."""

    @abc.abstractmethod
    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        """Returns the decay in [0, 1) of the update that follows training step `iteration`, counted
        from 1.
        """

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        """Returns 1 - decay, the share of the new weights, where possible without cancellation."""
        return 1.0 - self(iteration, batch_size)

    @abc.abstractmethod
    def get_config(self) -> dict:
        """Returns the constructor's arguments."""

    @classmethod
    def from_config(cls, config: dict) -> "Decay":
        return cls(**config)


@keras.saving.register_keras_serializable("keras_cdiff")
class FixedDecay(Decay):
    """The same decay at every step, as in DiT.

    Args:
        decay: in [0, 1).

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, section 4
        (0.9999).
    """

    def __init__(self, decay: float = 0.9999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1). Received: decay={decay}")
        self.decay = float(decay)

    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.convert_to_tensor(self.decay, dtype="float32")

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.convert_to_tensor(1.0 - self.decay, dtype="float32")

    def get_config(self) -> dict:
        return {"decay": self.decay}


@keras.saving.register_keras_serializable("keras_cdiff")
class WarmupDecay(Decay):
    """A half-life that grows with the images seen until it reaches its final value, as in EDM.

    halflife_now = min(halflife, rampup images_before), decay = 0.5^(batch_size / halflife_now),
    where images_before is the number of images seen before the step: the first update copies the
    weights, early ones forget the random initial weights, later the average becomes long.

    Args:
        halflife: final half-life in images, > 0.
        rampup: half-life as a fraction of the images seen, > 0.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, appendix F.1, counting as its published training does.
    """

    def __init__(self, halflife: float = 500_000, rampup: float = 0.05):
        if not 0.0 < halflife < math.inf:
            raise ValueError(
                f"`halflife` must be positive and finite, in images. Received: halflife={halflife}"
            )
        if not 0.0 < rampup < math.inf:
            raise ValueError(
                "`rampup` must be positive and finite, a fraction of the images seen. "
                f"Received: rampup={rampup}"
            )
        self.halflife = float(halflife)
        self.rampup = float(rampup)

    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.exp(self._log_decay(iteration, batch_size))

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return -ops.expm1(self._log_decay(iteration, batch_size))

    def _log_decay(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        batch_size = ops.cast(batch_size, "float32")
        images_before = (ops.cast(iteration, "float32") - 1.0) * batch_size
        halflife = ops.minimum(self.rampup * images_before, self.halflife)
        return -math.log(2.0) * batch_size / ops.maximum(halflife, 1e-8)

    def get_config(self) -> dict:
        return {"halflife": self.halflife, "rampup": self.rampup}


@keras.saving.register_keras_serializable("keras_cdiff")
class PowerDecay(Decay):
    """An average whose length grows with training: step k of t counts in proportion to k^gamma.

    decay = (1 - 1 / t)^(gamma + 1) after step t. The width is the standard deviation of the
    profile as a fraction of the training so far, sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).
    From stored averages of one or more widths `reconstruct` makes those of others.

    Args:
        width: in (0, 1 / sqrt(12)], the upper end being the plain mean of all steps.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
        2024, section 3.1 and appendix C.
    """

    def __init__(self, width: float = 0.1):
        self.exponent = power_exponent(width)
        self.width = float(width)

    def __call__(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return ops.exp(self._log_decay(iteration))

    def rate(self, iteration: Tensor, batch_size: Tensor | int) -> Tensor:
        return -ops.expm1(self._log_decay(iteration))

    def _log_decay(self, iteration: Tensor) -> Tensor:
        # -infinity at the first step: that update copies the weights.
        return (self.exponent + 1.0) * ops.log1p(-1.0 / ops.cast(iteration, "float32"))

    def get_config(self) -> dict:
        return {"width": self.width}


# Averages of other widths, from stored ones


def power_exponent(width: float) -> float:
    """Returns the exponent gamma >= 0 of the power-function profile of a relative width.

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / width^2 (Karras et al.,
    2024, appendix C.1).

    Raises:
        ValueError: if the width is not in (0, 1 / sqrt(12)].
    """
    if not 0.0 < width <= 12**-0.5 + 1e-12:
        raise ValueError(
            "`width` must lie in (0, 1 / sqrt(12) = 0.2887], a fraction of the training so far. "
            f"Received: width={width}"
        )
    precision = float(width) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision])
    return max(0.0, float(np.max(roots.real)))


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

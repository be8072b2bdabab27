"""How far apart the marginals of neighbouring noise levels are, for an empirical data set."""

import dataclasses
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.arrays import evenly_spaced
from keras_cdiff.common.checks import check_integer
from keras_cdiff.distribution import share, sharing
from keras_cdiff.objectives import normal
from keras_cdiff.schedules import DiscreteSchedule, Schedule

_BLOCK = 2048  # images at a time: memory does not grow with the data set
_ROUNDING = 1e-12  # of a squared distance, by the squared lengths that it is computed from
# Beyond these ratios of noise to signal nothing is left of either: EDM's own range of sigma.
_LEAST_NOISE, _MOST_NOISE = 0.002, 80.0


def relative_entropy(
    images: np.ndarray,
    schedule: Schedule,
    levels: Sequence[float],
    num_draws: int = 256,
    seed: int = 0,
    per_dimension: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates the relative entropy of neighbouring marginals, in nats for the whole image.

    The marginal p_t of a data set x_1 .. x_N is a mixture of N(alpha_t x_i, sigma_t^2 I), so that
    log p_t is exact, and only the expectation is a Monte Carlo mean over x ~ p_{t-1}:

        discrete schedules:    D_KL(p_{t-1} || p_t) = E[log p_{t-1}(x) - log p_t(x)]
        continuous schedules:  E[(d log p / d lambda)^2] / 2,   lambda = log SNR

    The latter is a rate: two marginals a small step h of log SNR apart are h^2 times as far apart.

    All levels use the same draws, stratified: each image as often as any other, and a Latin
    hypercube of noise. Standard errors are those of independent draws, so too large where there are
    few dimensions. Linear regression takes out what an estimate owes to the lengths of noise and
    image, whose means are known. Sums over the data set are float64, on JAX float32.

    Args:
        images: (N, ...) float, in the units of training: about [-1, 1] for pixels. A memory-mapped
            array is read in blocks.
        schedule: the schedule.
        levels: (L,) timesteps in 1..T-1, or levels that hold signal and noise.
        num_draws: M >= 8, Monte Carlo draws.
        seed: of the draws, >= 0.
        per_dimension: whether to divide by the number of values in an image.

    Returns:
        The estimate and its standard error, float64 (L,) each.

    Raises:
        ValueError: if an argument is out of its range.
    """
    _check(images, num_draws, seed)
    draws = _Draws(images, num_draws, seed)
    if isinstance(schedule, DiscreteSchedule):
        pairs = _consecutive(schedule, levels)
        results = [_divergence(row, draws.known()) for row in _log_ratios(draws, *pairs)]
    else:
        results = [_rate(*rows) for rows in _scores(draws, *_log_snr_slopes(schedule, levels))]
    estimate, error = np.array(results).reshape(-1, 2).T
    scale = 1.0 / draws.num_dimensions if per_dimension else 1.0
    return scale * estimate, scale * error


def gaussian_relative_entropy(
    variance: float, schedule: Schedule, levels: Sequence[float], num_dimensions: int = 1
) -> np.ndarray:
    """Returns what `relative_entropy` estimates, for data of N(0, s^2 I), in closed form:
    float64 (L,), in nats.

    The marginals are N(0, v I) with v = alpha^2 s^2 + sigma^2, so that for timesteps

        D_KL(p_{t-1} || p_t) = d / 2 (r - 1 - ln r),   r = v_{t-1} / v_t

    and for continuous schedules, with derivatives by the log SNR, the rate is d / 4 (v' / v)^2.

    Args:
        variance: s^2 >= 0.
        schedule: the schedule.
        levels: the levels (L,), as for `relative_entropy`.
        num_dimensions: d.
    """

    def marginal(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return np.square(alpha) * variance + np.square(sigma)

    if isinstance(schedule, DiscreteSchedule):
        before, after = _consecutive(schedule, levels)
        ratio = marginal(*before) / marginal(*after)
        return 0.5 * num_dimensions * (ratio - 1.0 - np.log(ratio))
    alpha, sigma, alpha_slope, sigma_slope = _log_snr_slopes(schedule, levels)
    slope = 2.0 * (alpha * alpha_slope * variance + sigma * sigma_slope)
    return 0.25 * num_dimensions * np.square(slope / marginal(alpha, sigma))


@dataclasses.dataclass
class EntropyCurve:
    """The relative entropy of neighbouring marginals at some levels of one schedule."""

    schedule: Schedule
    levels: np.ndarray  # (L,) ascending
    estimate: np.ndarray  # (L,) in nats, as `relative_entropy` returns it
    error: np.ndarray  # (L,) its standard errors
    num_dimensions: int  # values in an image

    @property
    def name(self) -> str:
        """Name of the schedule."""
        return type(self.schedule).__name__

    @property
    def discrete(self) -> bool:
        """Whether the levels are timesteps."""
        return isinstance(self.schedule, DiscreteSchedule)

    @property
    def log_snr(self) -> np.ndarray:
        """(L,) 2 ln(alpha / sigma)."""
        return log_snr(self.schedule, self.levels)

    @property
    def per_level(self) -> np.ndarray:
        """(L,) by the squared step of the level: for timesteps `estimate`, else the rate times
        (d log SNR / d level)^2.
        """
        if self.discrete:
            return self.estimate
        alpha, sigma = self.schedule.alpha_sigma(self.levels)
        alpha_slope, sigma_slope = self.schedule.slopes(self.levels)
        return self.estimate * np.square(2.0 * (alpha_slope / alpha - sigma_slope / sigma))


def measure_entropy(
    images: np.ndarray,
    schedule: Schedule,
    num_levels: int = 40,
    num_draws: int = 256,
    seed: int = 0,
) -> EntropyCurve:
    """Estimates the relative entropy at `spread_levels` of a schedule, which are shared among the
    processes of `distribution.shared_by`.

    Args:
        images: float (N, ...), in the units of training.
        schedule: the schedule.
        num_levels: L.
        num_draws, seed: as for `relative_entropy`.
    """
    levels = spread_levels(schedule, num_levels)
    count = sharing().count
    parts = [levels[rank::count] for rank in range(min(count, len(levels)))]
    results = share(parts, lambda part: relative_entropy(images, schedule, part, num_draws, seed))
    estimate, error = np.zeros((2, len(levels)))
    for rank, result in enumerate(results):
        estimate[rank::count], error[rank::count] = result
    return EntropyCurve(schedule, levels, estimate, error, int(np.prod(images.shape[1:])))


def spread_levels(schedule: Schedule, num_levels: int = 40) -> np.ndarray:
    """Returns levels from little noise to much, float64 (L,): timesteps in constant proportion, of
    which the smallest coincide; other levels at even distances of log SNR.

    Args:
        schedule: the schedule.
        num_levels: >= 2.

    Raises:
        ValueError: if `num_levels` is out of range.
    """
    num_levels = check_integer("num_levels", num_levels, 2)
    if isinstance(schedule, DiscreteSchedule):
        levels = np.geomspace(1, schedule.num_timesteps - 1, num_levels)
        return np.unique(np.round(levels)).astype(np.float64)
    alpha, sigma = schedule.alpha_sigma(np.array(schedule.bounds))
    with np.errstate(divide="ignore"):
        low, high = np.clip(sigma / alpha, _LEAST_NOISE, _MOST_NOISE)
    return schedule.level_at(np.geomspace(low, high, num_levels))


def log_snr(schedule: Schedule, levels: np.ndarray) -> np.ndarray:
    """Returns the log SNR of levels, on the host, infinite where there is no noise or no signal."""
    levels = np.asarray(levels, dtype=np.float64)
    result, inside = np.full(levels.shape, -np.inf), np.isfinite(levels)
    alpha, sigma = schedule.alpha_sigma(levels[inside])
    with np.errstate(divide="ignore"):
        result[inside] = 2.0 * (np.log(alpha) - np.log(sigma))
    return result


def _consecutive(
    schedule: DiscreteSchedule, levels: Sequence[float]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns (alpha, sigma) of the timesteps before `levels`, and of `levels`, float64 (L,)."""
    levels = np.asarray(levels, dtype=np.float64)
    last = schedule.num_timesteps - 1
    if levels.ndim != 1 or np.any((levels < 1) | (levels > last) | (levels % 1 != 0)):
        raise ValueError(
            f"Levels must be timesteps in 1..{last}, each compared with the one before it. "
            f"Received: levels={levels.tolist()}"
        )
    return schedule.alpha_sigma(levels - 1), schedule.alpha_sigma(levels)


def _log_snr_slopes(schedule: Schedule, levels: Sequence[float]) -> tuple[np.ndarray, ...]:
    """Returns alpha, sigma and their derivatives by the log SNR, float64 (L,)."""
    levels = np.asarray(levels, dtype=np.float64)
    low, high = schedule.domain
    alpha, sigma = schedule.alpha_sigma(levels)
    inside = (levels >= low) & (levels <= high) & np.isfinite(levels)
    if levels.ndim != 1 or not np.all(inside & (alpha > 0.0) & (sigma > 0.0)):
        raise ValueError(
            f"Levels must lie within [{low:g}, {high:g}] and hold both signal and noise. "
            f"Received: levels={levels.tolist()}"
        )
    alpha_slope, sigma_slope = schedule.slopes(levels)
    log_snr_slope = 2.0 * (alpha_slope / alpha - sigma_slope / sigma)
    return alpha, sigma, alpha_slope / log_snr_slope, sigma_slope / log_snr_slope


def _divergence(log_ratio: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of D_KL from samples of log p_{t-1} - log p_t.

    Since E[p_t / p_{t-1}] = 1, E[ratio - 1 - ln ratio] is D_KL too. Where the two marginals are
    close its samples are as small as D_KL itself, and never negative; where they are far apart the
    ratio's mean hangs on draws that never come, and the logarithm alone is the better sample.
    """
    if np.var(log_ratio) < 1.0:
        return _mean(log_ratio + np.expm1(-log_ratio), known[:, :0])
    return _mean(log_ratio, known)


def _rate(score: np.ndarray, own: np.ndarray, own_square: float) -> tuple[float, float]:
    """Mean and standard error of E[score^2] / 2, given what it is made of for a lonely image."""
    samples = 0.5 * np.square(score)
    known = (np.square(own) / own_square - 1.0)[:, None]
    estimate, error = _mean(samples, known)
    # With few draws the control may overshoot, and nothing here is negative.
    return (estimate, error) if estimate > 0.0 else _mean(samples, known[:, :0])


class _Draws:
    """M images of the data set and noise for each, and what is known about both.

    With an image x_j and noise eps, a term of the data set counts through squared distance
    |x_j - x_i|^2, tilt eps . (x_j - x_i), and excess |x_j|^2 - |x_i|^2, all of them without
    cancellation: they vanish for i = j.
    """

    def __init__(self, images: np.ndarray, num_draws: int, seed: int):
        rng = np.random.default_rng(seed)
        self.images = images
        # Each image as often as any other, or at most once if there are more images than draws.
        self.places = rng.permutation(len(images))[evenly_spaced(num_draws, len(images))]
        self.own = _flat(images[self.places])
        self.num_dimensions = self.own.shape[1]
        # A Latin hypercube: of every value's normal distribution, each M-th is drawn once.
        strata = np.broadcast_to(np.arange(num_draws)[:, None], self.own.shape)
        places = rng.permuted(strata, axis=0) + rng.random(self.own.shape)
        noise = normal.host_quantile(places / num_draws)
        self.image_length = np.sum(np.square(self.own), axis=1)
        self.noise_length = np.sum(np.square(noise), axis=1)
        self.product = np.sum(noise * self.own, axis=1)
        self._both = np.concatenate([self.own, noise])
        self.mean_length = 0.0  # of all images, once `blocks` has seen them

    def known(self) -> np.ndarray:
        """Returns quantities of the draws of the order of 1 whose means are zero: (M, 3)."""
        size, count = self.mean_length or 1.0, self.num_dimensions
        noise, image = self.noise_length / count - 1.0, self.image_length / size - 1.0
        return np.stack([noise, self.product / np.sqrt(count * size), image], axis=1)

    def blocks(self) -> Iterator[tuple[object, object, object]]:
        """Yields distance, tilt and excess of the draws to a block of images: (M, n) tensors."""
        dtype = "float32" if keras.backend.backend() == "jax" else "float64"
        total = 0.0
        for start in range(0, len(self.images), _BLOCK):
            block = _flat(self.images[start : start + _BLOCK])
            length = np.sum(np.square(block), axis=1)
            if not np.all(np.isfinite(length)):
                bad = start + int(np.flatnonzero(~np.isfinite(length))[0])
                raise ValueError(
                    "`images` must be finite: leave out those that are not. "
                    f"Received: images[{bad}] with values that are not finite"
                )
            total += np.sum(length)
            own, noise = np.split(self._both @ block.T, 2)
            excess = self.image_length[:, None] - length
            lengths = self.image_length[:, None] + length
            distance = lengths - 2.0 * own
            distance[distance < _ROUNDING * lengths] = 0.0  # those of copies
            tilt = self.product[:, None] - noise
            here = np.flatnonzero((self.places >= start) & (self.places < start + len(block)))
            for values in (distance, tilt, excess):
                values[here, self.places[here] - start] = 0.0
            yield tuple(ops.convert_to_tensor(v, dtype=dtype) for v in (distance, tilt, excess))
        self.mean_length = total / len(self.images)


def _mean(samples: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of samples (M,) and its standard error, by linear regression on controls
    (M, K) whose means are known to be zero.
    """
    size = len(samples)
    centred = known - known.mean(axis=0)
    varies = np.sqrt(np.mean(np.square(centred), axis=0)) > 1e-9  # more than rounding
    known, centred = known[:, varies], centred[:, varies]
    weights, _, rank, _ = np.linalg.lstsq(centred, samples - samples.mean(), rcond=1e-12)
    rest = samples - samples.mean() - centred @ weights
    estimate = samples.mean() - known.mean(axis=0) @ weights
    return estimate, np.sqrt(np.sum(np.square(rest)) / (size - 1 - rank) / size)


def _log_ratios(
    draws: _Draws, before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> np.ndarray:
    """log p_{t-1}(x) - log p_t(x) at x = alpha_{t-1} x_j + sigma_{t-1} eps, (L, M)."""
    (alpha, sigma), (next_alpha, next_sigma) = before, after
    ratio, step = alpha / sigma, (alpha - next_alpha) / next_sigma
    next_ratio, shrink = next_alpha / next_sigma, sigma / next_sigma
    # How the exponents change from t-1 to t, by distance, tilt and excess. Taking the change itself
    # to the sums keeps what differs between two marginals that are almost the same.
    changes = (
        0.5 * (np.square(ratio) - alpha * next_alpha / np.square(next_sigma)),
        ratio - next_ratio * shrink,
        -0.5 * next_ratio * step,
    )
    sums = [_Growth() for _ in alpha]
    for block in draws.blocks():
        for total, r, *factors in zip(sums, *(v.tolist() for v in (ratio, *changes)), strict=True):
            change = sum(f * values for f, values in zip(factors, block, strict=True))
            total.add(_exponent(r, *block[:2]), change)
    growth = np.stack([total.value() for total in sums])
    # x_j's own terms: the noise, and x - alpha_t x_j.
    shrink, step = shrink[:, None], step[:, None]
    own = 0.5 * (np.square(shrink) - 1.0) * draws.noise_length + step * shrink * draws.product
    own += 0.5 * np.square(step) * draws.image_length - draws.num_dimensions * np.log(shrink)
    return own - growth


def _scores(draws: _Draws, *slopes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """d log p(x) / d log SNR at x = alpha x_j + sigma eps for each level: (M,), the same if there
    were no image but x_j, and the mean square of that.
    """
    alpha, sigma, alpha_slope, sigma_slope = slopes
    sums = [_PosteriorMean() for _ in alpha]
    for distance, tilt, excess in draws.blocks():
        for total, a, s, a_slope, s_slope in zip(sums, *(v.tolist() for v in slopes), strict=True):
            # |x - alpha x_i|^2 and x_i . (x - alpha x_i), less those of x_j.
            squares = 2.0 * a * s * tilt + a**2 * distance
            products = 0.5 * a * (excess - distance) - s * tilt
            change = s_slope / s**3 * squares + a_slope / s**2 * products
            weight = ops.exp(_exponent(a / s, distance, tilt))
            total.add(weight, weight * change)
    results = []
    factors = sigma_slope / sigma, alpha_slope / sigma
    for total, noise_factor, image_factor in zip(sums, *factors, strict=True):
        own = noise_factor * (draws.noise_length - draws.num_dimensions)
        own += image_factor * draws.product
        square = 2.0 * draws.num_dimensions * noise_factor**2 + draws.mean_length * image_factor**2
        results.append((own + total.value(), own, square))
    return results


def _exponent(ratio: float, distance: object, tilt: object) -> object:
    """Of the terms of p(x), less that of x_j's own; `ratio` is alpha / sigma."""
    return -(0.5 * ratio**2) * distance - ratio * tilt


class _PosteriorMean:
    """The mean of values over the images, weighted by exp(exponent), over blocks of images.

    x_j's own exponent is 0, and another's is above c with a probability of less than exp(-c): the
    sums need no scale.
    """

    def __init__(self):
        self._weight = self._product = 0.0

    def add(self, weight: object, product: object) -> None:
        self._weight = self._weight + ops.sum(weight, axis=1)
        self._product = self._product + ops.sum(product, axis=1)

    def value(self) -> np.ndarray:
        return _float64(self._product / self._weight)

    def log_sum(self) -> np.ndarray:
        """Returns ln sum_i exp(exponent_i), float64 (M,)."""
        return np.log(_float64(self._weight))


class _Growth:
    """ln sum_i exp(exponent_i + change_i) - ln sum_i exp(exponent_i), over blocks of images.

    Where it is small it is the logarithm of 1 + the mean of exp(change) - 1, which keeps what is
    left of two sums that are almost the same; where it is large that mean may not be a float.
    """

    def __init__(self):
        self._mean = _PosteriorMean()
        self._most = self._after = None  # ln sum_i exp(exponent_i + change_i), with its scale

    def add(self, exponent: object, change: object) -> None:
        weight, after = ops.exp(exponent), exponent + change
        small = weight * ops.expm1(ops.clip(change, -1.0, 1.0))
        self._mean.add(weight, ops.where(ops.abs(change) < 1.0, small, ops.exp(after) - weight))
        most = ops.max(after, axis=1)
        if self._most is not None:
            most = ops.maximum(most, self._most)
        total = ops.sum(ops.exp(after - most[:, None]), axis=1)
        if self._most is not None:
            total = total + self._after * ops.exp(self._most - most)
        self._most, self._after = most, total

    def value(self) -> np.ndarray:
        large = _float64(self._most) + np.log(_float64(self._after)) - self._mean.log_sum()
        with np.errstate(all="ignore"):  # where it is large the mean is not used
            small = np.log1p(self._mean.value())
        return np.where(np.abs(large) < 0.5, small, large)


def _float64(tensor: object) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), dtype=np.float64)


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, dtype=np.float64).reshape(len(images), -1)


def _check(images: np.ndarray, num_draws: int, seed: int) -> None:
    array = isinstance(images, np.ndarray)
    if not array or images.dtype.kind != "f" or images.ndim < 2 or not len(images):
        described = f"{images.dtype} of shape {images.shape}" if array else type(images).__name__
        raise ValueError(
            "`images` must be a float array (N, ...) of at least one image, scaled as in training, "
            f"for instance by images / 127.5 - 1 from uint8. Received: images of {described}"
        )
    for name, value, least in (("num_draws", num_draws, 8), ("seed", seed, 0)):
        check_integer(name, value, least)

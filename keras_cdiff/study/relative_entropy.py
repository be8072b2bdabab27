"""How far apart the marginals of neighbouring noise levels are, for an empirical data set."""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.schedules import DiscreteSchedule, Schedule
from keras_cdiff.study.marginals import consecutive, log_snr_slopes

_BLOCK = 2048  # images at a time: memory does not grow with the data set


def relative_entropy(
    images: np.ndarray,
    schedule: Schedule,
    levels: Sequence[float],
    num_draws: int = 256,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates the relative entropy of neighbouring marginals, in nats for the whole image.

    The marginal p_t of a data set x_1 .. x_N is a mixture of N(alpha_t x_i, sigma_t^2 I), so that
    log p_t is exact, and only the expectation is a Monte Carlo mean over x ~ p_{t-1}:

        discrete schedules:    D_KL(p_{t-1} || p_t) = E[log p_{t-1}(x) - log p_t(x)]
        continuous schedules:  E[(d log p / d lambda)^2] / 2,   lambda = log SNR

    The latter is the rate at which the marginals move: the relative entropy of two that are a small
    step h of log SNR apart is h^2 times as much. Either, divided by the number of values in an
    image, is a value per dimension.

    All levels use the same images and noise; each image is drawn as often as any other. What an
    estimate owes to the length of the noise and of the image has a known mean and is taken out by
    linear regression. Squared distances are computed in float64 on the host, the sums over the data
    set on the backend, in float64 but for JAX, which has float32.

    Args:
        images: (N, ...) float, in the units of training: about [-1, 1] for pixels. A memory-mapped
            array is read in blocks.
        schedule: the schedule.
        levels: (L,) timesteps in 1..T-1, or levels that hold signal and noise.
        num_draws: M >= 8, Monte Carlo draws.
        seed: of the draws, >= 0.

    Returns:
        The estimate and its standard error, float64 (L,) each.

    Raises:
        ValueError: if an argument is out of its range.
    """
    _check(images, num_draws, seed)
    draws = _Draws(images, num_draws, seed)
    if isinstance(schedule, DiscreteSchedule):
        pairs = consecutive(schedule, levels)
        results = [_divergence(row, draws.known()) for row in _log_ratios(draws, *pairs)]
    else:
        results = [_rate(*rows) for rows in _scores(draws, *log_snr_slopes(schedule, levels))]
    estimate, error = np.array(results).reshape(-1, 2).T
    return estimate, error


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
    return _mean(0.5 * np.square(score), (np.square(own) - own_square)[:, None])


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
        even = np.arange(num_draws) * len(images) // num_draws
        self.places = rng.permutation(len(images))[even]
        self.own = _flat(images[self.places])
        self.num_dimensions = self.own.shape[1]
        noise = rng.standard_normal(self.own.shape)
        self.image_length = np.sum(np.square(self.own), axis=1)
        self.noise_length = np.sum(np.square(noise), axis=1)
        self.product = np.sum(noise * self.own, axis=1)
        self._both = np.concatenate([self.own, noise])
        self.mean_length = 0.0  # of all images, once `blocks` has seen them

    def known(self) -> np.ndarray:
        """Returns quantities of the draws whose means are zero, (M, 3), after `blocks`."""
        return np.stack(
            [
                self.noise_length - self.num_dimensions,
                self.product,
                self.image_length - self.mean_length,
            ],
            axis=1,
        )

    def blocks(self) -> Iterator[tuple[object, object, object]]:
        """Yields distance, tilt and excess of the draws to a block of images: (M, n) tensors."""
        dtype = "float32" if keras.backend.backend() == "jax" else "float64"
        total = 0.0
        for start in range(0, len(self.images), _BLOCK):
            block = _flat(self.images[start : start + _BLOCK])
            length = np.sum(np.square(block), axis=1)
            total += np.sum(length)
            own, noise = np.split(self._both @ block.T, 2)
            excess = self.image_length[:, None] - length
            distance = np.maximum(self.image_length[:, None] + length - 2.0 * own, 0.0)
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
    design = np.concatenate([np.ones((size, 1)), known], axis=1)
    design /= np.maximum(np.abs(design).max(axis=0), 1e-300)
    weights, _, rank, _ = np.linalg.lstsq(design, samples, rcond=1e-12)
    rest = samples - design @ weights
    return weights[0], np.sqrt(np.sum(np.square(rest)) / (size - rank) / size)


def _log_ratios(
    draws: _Draws,
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """log p_{t-1}(x) - log p_t(x) at x = alpha_{t-1} x_j + sigma_{t-1} eps, (L, M)."""
    alpha, sigma = (values[:, None] for values in before)
    next_alpha, next_sigma = (values[:, None] for values in after)
    # The exponents of the terms, less that of x_j's own.
    variance = np.square(next_sigma)
    change = alpha - next_alpha
    factors = np.concatenate(
        [
            np.concatenate([-0.5 * np.square(alpha / sigma), -alpha / sigma, 0.0 * alpha], axis=1),
            np.concatenate(
                [
                    -0.5 * alpha * next_alpha / variance,
                    -next_alpha * sigma / variance,
                    -0.5 * next_alpha * change / variance,
                ],
                axis=1,
            ),
        ]
    )
    sums = [_LogSumExp() for _ in factors]
    for block in draws.blocks():
        for total, factor in zip(sums, factors.tolist(), strict=True):
            total.add(sum(f * values for f, values in zip(factor, block, strict=True)))
    first, second = np.split(np.stack([total.value() for total in sums]), 2)
    # x_j's own terms: the noise, and x - alpha_t x_j.
    distance = np.square(change) * draws.image_length + np.square(sigma) * draws.noise_length
    distance += 2.0 * change * sigma * draws.product
    own = draws.num_dimensions * np.log(next_sigma / sigma) - 0.5 * draws.noise_length
    return own + 0.5 * distance / variance + first - second


def _scores(
    draws: _Draws,
    alpha: np.ndarray,
    sigma: np.ndarray,
    alpha_slope: np.ndarray,
    sigma_slope: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """d log p(x) / d log SNR at x = alpha x_j + sigma eps for each level: (M,), the same if there
    were no image but x_j, and the mean square of that.
    """
    sums = [_LogSumExp(weighted=True) for _ in alpha]
    for distance, tilt, excess in draws.blocks():
        for total, a, s, a_slope, s_slope in zip(
            sums, *(v.tolist() for v in (alpha, sigma, alpha_slope, sigma_slope)), strict=True
        ):
            exponent = -0.5 * (a / s) ** 2 * distance - a / s * tilt
            # |x - alpha x_i|^2 and x_i . (x - alpha x_i), less those of x_j.
            squares = 2.0 * a * s * tilt + a**2 * distance
            products = 0.5 * a * (excess - distance) - s * tilt
            change = s_slope / s**3 * squares + a_slope / s**2 * products
            total.add(exponent, change)
    results = []
    for total, noise_factor, image_factor in zip(
        sums, sigma_slope / sigma, alpha_slope / sigma, strict=True
    ):
        own = noise_factor * (draws.noise_length - draws.num_dimensions)
        own += image_factor * draws.product
        square = 2.0 * draws.num_dimensions * noise_factor**2 + draws.mean_length * image_factor**2
        results.append((own + total.value(), own, square))
    return results


class _LogSumExp:
    """ln sum_i exp(e_i) over blocks of columns, or the mean of values under these weights."""

    def __init__(self, weighted: bool = False):
        self.weighted = weighted
        self._most = self._sum = self._values = None

    def add(self, exponent: object, values: object = None) -> None:
        """Takes a block of exponents (M, n), and of values."""
        most = ops.max(exponent, axis=1, keepdims=True)
        if self._most is not None:
            most = ops.maximum(most, self._most)
        weight = ops.exp(exponent - most)
        total = ops.sum(weight, axis=1, keepdims=True)
        product = ops.sum(weight * values, axis=1, keepdims=True) if self.weighted else None
        if self._most is not None:
            shrink = ops.exp(self._most - most)
            total = total + shrink * self._sum
            if self.weighted:
                product = product + shrink * self._values
        self._most, self._sum, self._values = most, total, product

    def value(self) -> np.ndarray:
        """Returns the logarithm or the mean, float64 (M,)."""
        result = self._values / self._sum if self.weighted else self._most + ops.log(self._sum)
        return np.asarray(ops.convert_to_numpy(result), dtype=np.float64)[:, 0]


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
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}"
            )

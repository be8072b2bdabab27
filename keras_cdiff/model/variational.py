"""The variational term that trains a learned variance, and the reverse step's variance itself.

Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equations 5 to 7 and 13; Nichol
and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, equations 15 and 16.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_cdiff.schedules import DiscreteSchedule

Tensor = keras.KerasTensor


class Posterior:
    """The Gaussian q(x_{t-1} | x_t, x_0), and the range in which a learned variance lies, one
    float64 row a timestep.

    mean = clean_scale x_0 + noisy_scale x_t. The variance at t = 0 is zero, so its logarithm is
    that of t = 1.

    Args:
        betas: (T,) float64, in (0, 1).
    """

    def __init__(self, betas: np.ndarray):
        signal = np.cumprod(1.0 - betas)
        previous = np.concatenate([[1.0], signal[:-1]])
        self.clean_scale = betas * np.sqrt(previous) / (1.0 - signal)
        self.noisy_scale = (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - signal)
        self.variance = betas * (1.0 - previous) / (1.0 - signal)
        positive = (
            np.concatenate([self.variance[1:2], self.variance[1:]]) if len(betas) > 1 else betas
        )
        self.log_variance = np.log(positive)
        self.log_beta = np.log(betas)


def interpolate_log_variance(variance: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns log variance = w high + (1 - w) low, w = (output + 1) / 2, for the network's variance
    channels.
    """
    weight = (variance + 1.0) / 2.0
    return weight * high + (1.0 - weight) * low


def variational_term(
    schedule: DiscreteSchedule,
    level: Tensor,
    image: Tensor,
    noisy: Tensor,
    clean: Tensor,
    variance: Tensor,
) -> Tensor:
    """Returns the variational bound's term at `level`, in bits per dimension; its gradient reaches
    the variance alone.

    For t > 0 it is D_KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), for t = 0 the negative log
    likelihood of the 8-bit image under the discretised Gaussian.

    Args:
        schedule: gives the betas.
        level: (B,) timesteps.
        image: (B, H, W, C) clean images in [-1, 1].
        noisy: (B, H, W, C) images at `level`.
        clean: (B, H, W, C) the network's estimate of `image`, unclipped.
        variance: (B, H, W, C) the network's variance channels.

    Returns:
        (B,) float32.
    """
    posterior = Posterior(schedule.betas)

    def row(table: np.ndarray) -> Tensor:
        return ops.reshape(schedule.lookup(table, level), (-1, 1, 1, 1))

    clean_scale, noisy_scale = row(posterior.clean_scale), row(posterior.noisy_scale)
    true_log_variance = row(posterior.log_variance)
    mean = clean_scale * ops.stop_gradient(clean) + noisy_scale * noisy
    true_mean = clean_scale * image + noisy_scale * noisy
    log_variance = interpolate_log_variance(variance, true_log_variance, row(posterior.log_beta))

    divergence = 0.5 * (
        log_variance
        - true_log_variance
        - 1.0
        + ops.exp(true_log_variance - log_variance)
        + ops.square(true_mean - mean) * ops.exp(-log_variance)
    )
    likelihood = _discretized_log_likelihood(image, mean, 0.5 * log_variance)
    first = ops.reshape(level, (-1, 1, 1, 1)) < 0.5
    nats = ops.where(first, -likelihood, divergence)
    return ops.mean(nats, axis=(1, 2, 3)) / math.log(2.0)


def _discretized_log_likelihood(image: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of 8-bit images, scaled to [-1, 1], under a Gaussian integrated over each
    grey level.

    The normal distribution function is approximated as 0.5 (1 + tanh(sqrt(2 / pi) (x + 0.044715
    x^3))).
    """

    def cdf(x: Tensor) -> Tensor:
        return 0.5 * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))

    centred, inverse_scale = image - mean, ops.exp(-log_scale)
    above = cdf((centred + 1.0 / 255.0) * inverse_scale)
    below = cdf((centred - 1.0 / 255.0) * inverse_scale)
    # The outermost grey levels reach to infinity.
    probability = ops.where(
        image < -0.999, above, ops.where(image > 0.999, 1.0 - below, above - below)
    )
    return ops.log(ops.maximum(probability, 1e-12))

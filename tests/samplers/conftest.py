"""Small models and exact denoisers for the samplers' tests."""

import math

import keras
import numpy as np
import pytest

from keras_cdiff.ema import FixedDecay
from keras_cdiff.parameterizations import Epsilon


@pytest.fixture
def small_model(make_model):
    """A function that builds a compiled small model of 4 x 4 latents: "ddpm", "edm" or "flow"."""

    def build(kind="ddpm", ema=0.5, learned_variance=False, **network):
        model = make_model(
            kind,
            average=None if ema is None else FixedDecay(ema),
            parameterization=Epsilon(learned_variance=True) if learned_variance else None,
            **{"image_size": 4, "channels": 4, **network},
        )
        model.compile(optimizer=keras.optimizers.SGD(0.1))
        return model

    return build


@pytest.fixture
def epsilon_denoiser():
    """A function: (schedule, eps(x, level)) -> denoiser of a network that predicts the noise."""

    def build(schedule, network, learned_variance=None):
        def denoise(x, level):
            alpha, sigma = (float(v) for v in schedule.alpha_sigma(np.array(level)))
            variance = None if learned_variance is None else learned_variance(x, level)
            return {"clean": (x - sigma * network(x, level)) / alpha, "variance": variance}

        return denoise

    return build


class GaussianData:
    """Pixels drawn from N(mean, std^2), for which the best denoiser is known."""

    mean, std = 0.3, 0.4

    def clean_weights(self, alpha, sigma):
        """Of E[x_0 | x] = a + b x."""
        total = (alpha * self.std) ** 2 + sigma**2
        return self.mean * sigma**2 / total, alpha * self.std**2 / total

    def denoiser(self, schedule):
        def denoise(x, level):
            a, b = self.clean_weights(*schedule.alpha_sigma(np.array(level)))
            return {"clean": float(a) + float(b) * x, "variance": None}

        return denoise

    def flow(self, x, start, end):
        """The probability-flow ODE's exact solution from (alpha, sigma) `start` to `end`."""

        def scale(alpha, sigma):
            return np.sqrt((alpha * self.std) ** 2 + sigma**2)

        standard = (x - start[0] * self.mean) / scale(*start)
        return end[0] * self.mean + scale(*end) * standard


@pytest.fixture
def gaussian_data():
    return GaussianData()


class TwoPoints:
    """Pixels that are `size` or -`size`, for which the best denoiser is known."""

    size = 0.5

    def denoiser(self, schedule):
        def denoise(x, level):
            alpha, sigma = schedule.alpha_sigma(np.array(level))
            return {"clean": self.size * np.tanh(self.size * alpha * x / sigma**2)}

        return denoise

    def flow(self, x, start, end):
        """The probability-flow ODE's exact solution from (alpha, sigma) `start` to `end`.

        In one dimension it keeps every pixel at its quantile.
        """

        def distribution(x, alpha, sigma):
            erf = np.vectorize(math.erf)
            ends = [(x + sign * alpha * self.size) / (sigma * math.sqrt(2.0)) for sign in (-1, 1)]
            return 0.5 + 0.25 * (erf(ends[0]) + erf(ends[1]))

        quantile = distribution(x, *start)
        low, high = np.full_like(x, -10.0), np.full_like(x, 10.0)
        for _ in range(60):
            middle = (low + high) / 2.0
            below = distribution(middle, *end) < quantile
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2.0


@pytest.fixture
def two_points():
    return TwoPoints()


@pytest.fixture
def integrate():
    """A function: the states that a sampler visits, its steps taken in float64 NumPy."""

    def states(sampler, schedule, denoise, x):
        table = sampler.table(schedule)
        clean = np.zeros_like(x)
        visited = [x]
        for i in range(len(table["level"])):
            row = {name: column[i] for name, column in table.items()}
            last = i == len(table["level"]) - 1
            x, clean = sampler.step(denoise, x, clean, row, last=last)
            visited.append(x)
        return visited

    return states

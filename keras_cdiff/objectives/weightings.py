"""Weightings: how much the loss at a noise level counts."""

import abc
import math

import keras
from keras import ops

Tensor = keras.KerasTensor


class Weighting(abc.ABC):
    """Base of all weightings over noise levels."""

    @abc.abstractmethod
    def output_weight(self, log_snr: Tensor, c_out: Tensor) -> Tensor:
        """Returns the weight of the squared error of the network's output."""

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Weighting":
        return cls(**config)


class ImageWeighting(Weighting):
    """Base of the weightings that are defined in the space of the clean image, where they mean the
    same for every parameterization: loss = w |clean - x_0|^2.

    A network's own output has an error smaller by c_out, so its loss carries w c_out^2.
    """

    @abc.abstractmethod
    def weight(self, log_snr: Tensor) -> Tensor:
        """Returns the weight of the clean image's squared error at `log_snr`."""

    def output_weight(self, log_snr: Tensor, c_out: Tensor) -> Tensor:
        # Infinite where an image is clean or all noise, as at the ends of RectifiedFlow.
        return self.weight(ops.clip(log_snr, -80.0, 80.0)) * ops.square(c_out)


@keras.saving.register_keras_serializable("keras_cdiff")
class Constant(Weighting):
    """Weight 1 on the network's own output, whatever it predicts: the loss of DDPM and of DiT.

    In the space of the clean image this is 1 / c_out^2, which depends on the parameterization.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equation 14.
    """

    def output_weight(self, log_snr: Tensor, c_out: Tensor) -> Tensor:
        return ops.ones_like(c_out)


@keras.saving.register_keras_serializable("keras_cdiff")
class MinSNR(ImageWeighting):
    """Min-SNR-gamma: w = min(SNR, gamma) on the clean image.

    On the output that is min(S, gamma) / S for `Epsilon`, min(S, gamma) / (S + 1) for `Velocity`.

    Args:
        gamma: cap on the signal-to-noise ratio, > 0.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
        section 3.4.
    """

    def __init__(self, gamma: float = 5.0):
        self.gamma = positive("gamma", gamma)

    def weight(self, log_snr: Tensor) -> Tensor:
        return ops.exp(ops.minimum(log_snr, math.log(self.gamma)))

    def get_config(self) -> dict:
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable("keras_cdiff")
class P2(ImageWeighting):
    """P2: 1 / (k + SNR)^gamma on the noise, that is SNR / (k + SNR)^gamma on the clean image.

    Args:
        gamma: strength, >= 0; 0 is the simple loss.
        k: keeps the weight finite at high noise, > 0.

    Source: Choi et al., "Perception Prioritized Training of Diffusion Models", 2022, equation 8.
    """

    def __init__(self, gamma: float = 1.0, k: float = 1.0):
        if not 0.0 <= gamma < math.inf:
            raise ValueError(f"`gamma` must be finite and at least 0. Received: gamma={gamma}")
        self.gamma = float(gamma)
        self.k = positive("k", k)

    def weight(self, log_snr: Tensor) -> Tensor:
        return ops.exp(log_snr - self.gamma * ops.logaddexp(log_snr, math.log(self.k)))

    def get_config(self) -> dict:
        return {"gamma": self.gamma, "k": self.k}


@keras.saving.register_keras_serializable("keras_cdiff")
class EDMWeight(ImageWeighting):
    """EDM's weight (s^2 + d^2) / (s d)^2 = SNR + 1 / d^2, with s = sigma / alpha, which is 1 /
    c_out^2.

    Args:
        sigma_data: standard deviation d of the data, > 0; the same as in `EDMPreconditioning`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, table 1.
    """

    def __init__(self, sigma_data: float = 0.5):
        self.sigma_data = positive("sigma_data", sigma_data)

    def weight(self, log_snr: Tensor) -> Tensor:
        return ops.exp(log_snr) + 1.0 / self.sigma_data**2

    def get_config(self) -> dict:
        return {"sigma_data": self.sigma_data}


def positive(name: str, value: float) -> float:
    """Returns `value` as a float, or raises a ValueError that calls it `name`."""
    if not 0.0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite. Received: {name}={value}")
    return float(value)

"""Moving averages of the weights: decay profiles, and reconstruction of other widths."""

from keras_cdiff.ema.decays import Decay, FixedDecay, PowerDecay, WarmupDecay, power_exponent
from keras_cdiff.ema.reconstruction import (
    Snapshot,
    profile_products,
    reconstruct,
    reconstruction_coefficients,
)

__all__ = [
    "Decay",
    "FixedDecay",
    "PowerDecay",
    "Snapshot",
    "WarmupDecay",
    "power_exponent",
    "profile_products",
    "reconstruct",
    "reconstruction_coefficients",
]

"""Parameterizations: what the network predicts, and how that becomes an estimate of the clean
image.

Each is an affine map with four coefficients that depend on the noise level alone,

    clean(x_t) = c_skip x_t + c_out network(c_in x_t, c_noise),

so that samplers, weightings and the curriculum do not depend on which one a model uses. The
network's training target is the output for which that estimate is the true image, written as a
combination of image and noise, since solving the equation above for it would cancel digits at low
noise.
"""

from keras_cdiff.parameterizations.parameterization import (
    Coefficients,
    Epsilon,
    Parameterization,
    Sample,
    Velocity,
)
from keras_cdiff.parameterizations.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
)

__all__ = [
    "Coefficients",
    "EDMPreconditioning",
    "Epsilon",
    "IDDPMPreconditioning",
    "Parameterization",
    "Sample",
    "VEPreconditioning",
    "VPPreconditioning",
    "Velocity",
]

"""Schedules: how much signal and how much noise an image holds at a noise level.

Every noisy image is x_t = alpha x_0 + sigma eps. A level is the schedule's native coordinate and
always grows with noise: the timestep 0..T-1 for `LinearBeta` and `Cosine`, sigma itself for `EDM`,
the variance for `VE`, a time in [0, 1] for `VP` and `RectifiedFlow`.

The host-side numbers (`alpha_sigma`, `level_at`, `slopes`) are float64 NumPy; `alpha`, `sigma` and
`log_snr` take tensors and return float32 under every dtype policy.
"""

from keras_cdiff.schedules.continuous import EDM, VE, VP, RectifiedFlow
from keras_cdiff.schedules.discrete import Cosine, DiscreteSchedule, LinearBeta
from keras_cdiff.schedules.schedule import Schedule

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "DiscreteSchedule",
    "LinearBeta",
    "RectifiedFlow",
    "Schedule",
]

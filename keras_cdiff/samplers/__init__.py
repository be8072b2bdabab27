"""Samplers: how noise becomes an image."""

from keras_cdiff.samplers.ddim import DDIM
from keras_cdiff.samplers.ddpm import DDPM
from keras_cdiff.samplers.dpm_solver import DPMSolver
from keras_cdiff.samplers.euler import Euler, Heun
from keras_cdiff.samplers.sample import Guidance, default_sampler, sample
from keras_cdiff.samplers.sampler import Sampler

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolver",
    "Euler",
    "Guidance",
    "Heun",
    "Sampler",
    "default_sampler",
    "sample",
]

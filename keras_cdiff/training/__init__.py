"""Training runs: configuration, workdir, callbacks, checkpoints, samples of what was trained."""

from keras_cdiff.common.tensorboard import TensorBoardWriter
from keras_cdiff.training.callbacks import NonFiniteGuard, RunLog, StopAt
from keras_cdiff.training.checkpoint import CheckpointFolder, DamagedCheckpoint
from keras_cdiff.training.checkpoint_callback import CheckpointCallback, Interrupted, resume
from keras_cdiff.training.configuration import resolve
from keras_cdiff.training.ema_snapshots import EMASnapshots, read_snapshots, reconstruct_average
from keras_cdiff.training.evaluation import evaluate_model
from keras_cdiff.training.generation import (
    SampleGrid,
    generate,
    load,
    load_run,
    load_weights,
    prompt_contexts,
    sampling_settings,
)
from keras_cdiff.training.interruption import EXIT_INTERRUPTED, Interruption
from keras_cdiff.training.model_state import restore, snapshot
from keras_cdiff.training.run import train
from keras_cdiff.training.run_data import open_run_autoencoder
from keras_cdiff.training.workdir import Workdir

__all__ = [
    "EXIT_INTERRUPTED",
    "CheckpointCallback",
    "CheckpointFolder",
    "DamagedCheckpoint",
    "EMASnapshots",
    "Interrupted",
    "Interruption",
    "NonFiniteGuard",
    "RunLog",
    "SampleGrid",
    "StopAt",
    "TensorBoardWriter",
    "Workdir",
    "evaluate_model",
    "generate",
    "load",
    "load_run",
    "load_weights",
    "open_run_autoencoder",
    "prompt_contexts",
    "read_snapshots",
    "reconstruct_average",
    "resolve",
    "restore",
    "resume",
    "sampling_settings",
    "snapshot",
    "train",
]

"""Connects processes, and opens the engine that distributes training, on each backend."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from keras_cdiff.distribution.cluster import Cluster
from keras_cdiff.distribution.engine import Engine
from keras_cdiff.distribution.processes import Processes

KINDS = ("none", "data", "model")
PEER_TIMEOUT = 300.0


@contextlib.contextmanager
def connected(cluster: Cluster | None, peer_timeout: float = PEER_TIMEOUT) -> Iterator[Processes]:
    """Connects the processes of a task for as long as the block lasts, and yields them.

    It must be entered before the backend computes anything: JAX by
    `keras.distribution.initialize`, TensorFlow by its MultiWorkerMirroredStrategy, PyTorch by
    `torch.distributed`, over nccl where there are GPUs and gloo elsewhere.

    Args:
        cluster: what `find_cluster` returned; None for this process alone.
        peer_timeout: seconds after which a process that does not answer counts as lost, on
            PyTorch; JAX and TensorFlow have times of their own.
    """
    if cluster is None:
        yield Processes()
        return
    backend = keras.backend.backend()
    if backend == "jax":
        from keras_cdiff.distribution.jax import JaxProcesses as Connected
    elif backend == "tensorflow":
        from keras_cdiff.distribution.tensorflow import TensorFlowProcesses as Connected
    else:
        from keras_cdiff.distribution.torch import TorchProcesses as Connected
    processes = Connected(cluster, peer_timeout)
    try:
        yield processes
    except BaseException:
        processes.abandon()
        raise
    else:
        processes.close()


@contextlib.contextmanager
def distribute(
    kind: str, processes: Processes | None = None, model_devices: int | None = None
) -> Iterator[Engine]:
    """Spreads training over devices for as long as the block lasts.

    "data": each device holds the whole model and computes its part of the batch; JAX by
    `keras.distribution.DataParallel`, TensorFlow by MirroredStrategy, MultiWorkerMirroredStrategy
    or TPUStrategy, PyTorch by torch.distributed with a process for each device. "model": devices
    hold parts of the model, on JAX, by `keras.distribution.ModelParallel`.

    What a sample is, its noise level and its noise do not depend on where it is computed. `fit`
    takes what `Engine.batches` returns; of several processes each reads its share.

    Args:
        kind: "none", "data" or "model".
        processes: what `connected` gave; None for this process alone.
        model_devices: devices that hold one copy of the model together, for "model": they belong to
            one process, whose number of devices is a multiple; None for all of a process.

    Yields:
        The engine.

    Raises:
        ValueError: if the backend cannot do that.

    Example:

    ```python
    with distribution.distribute("data") as engine:
        with engine.scope():
            model = keras_cdiff.DiffusionModel.from_preset("dit_emoji16")
            model.compile()
        batches = data.make_dataset(source, 16, batch_size=64, shard=engine.shard)
        model.fit(engine.batches(batches), steps_per_epoch=100, shuffle=False)
    ```
    """
    processes = processes or Processes()
    if kind not in KINDS:
        raise ValueError(
            f"`distribution` must be one of {', '.join(KINDS)}. Received: distribution={kind!r}"
        )
    backend = keras.backend.backend()
    if kind == "none" and processes.count > 1:
        raise ValueError(
            "Several processes train together: give distribution data or model, or start one "
            f"process alone. Received: distribution='none' with {processes.count} processes"
        )
    if model_devices is not None and kind != "model":
        raise ValueError(
            "`model_devices` is for distribution 'model': leave it out. "
            f"Received: model_devices={model_devices}, distribution={kind!r}"
        )
    if kind == "model" and backend != "jax":
        raise ValueError(
            "Only JAX cuts models into parts: use KERAS_BACKEND=jax, or distribution 'data'. "
            f"Received: distribution='model' on {backend}"
        )
    if kind == "none":
        engine = Engine(processes)
    elif backend == "jax":
        from keras_cdiff.distribution.jax import JaxEngine

        engine = JaxEngine(processes, None if kind == "data" else model_devices or 0)
    elif backend == "tensorflow":
        from keras_cdiff.distribution.tensorflow import TensorFlowEngine

        engine = TensorFlowEngine(processes)
    else:
        from keras_cdiff.distribution.torch import TorchEngine

        engine = TorchEngine(processes)
    with engine.running():
        yield engine


def to_host(variable: keras.Variable) -> np.ndarray:
    """Returns the value of a variable, also of one whose parts lie on several devices."""
    if keras.backend.backend() == "jax" and not variable.value.is_fully_addressable:
        from keras_cdiff.distribution.jax import to_numpy

        return to_numpy(variable.value)
    return keras.ops.convert_to_numpy(variable)

"""Connects the processes of a task by the backend's own engine."""

import contextlib
from collections.abc import Iterator

import keras

from keras_cdiff.distribution.cluster import Cluster
from keras_cdiff.distribution.processes import Processes

PEER_TIMEOUT = 300.0


@contextlib.contextmanager
def connected(cluster: Cluster | None, peer_timeout: float = PEER_TIMEOUT) -> Iterator[Processes]:
    """Connects the processes of a task for as long as the block lasts.

    It must be entered before the backend computes anything: JAX by
    `keras.distribution.initialize`, TensorFlow by its MultiWorkerMirroredStrategy, PyTorch by
    `torch.distributed`, over nccl where there are GPUs and gloo elsewhere.

    Args:
        cluster: what `find_cluster` returned; None for this process alone.
        peer_timeout: seconds after which a process that does not answer counts as lost, on
            PyTorch; JAX and TensorFlow have times of their own.

    Yields:
        The processes.
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

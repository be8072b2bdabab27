"""Several devices and processes on JAX, by keras.distribution."""

import contextlib
import weakref
from collections.abc import Iterator

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from keras_cdiff.distribution.cluster import Cluster
from keras_cdiff.distribution.engine import Engine
from keras_cdiff.distribution.layouts import layout_map
from keras_cdiff.distribution.processes import LostPeer, Processes


class JaxProcesses(Processes):
    """Processes of one or more devices each.

    Args:
        cluster: who they are.
        timeout: not used; JAX counts a process as lost that has not been heard of for 100 s.
    """

    def __init__(self, cluster: Cluster, timeout: float):
        self.index, self.count = cluster.index, cluster.count
        # It would keep SIGTERM to itself, which is for runs to end by.
        jax.config.update("jax_enable_preemption_service", False)
        keras.distribution.initialize(",".join(cluster.addresses), self.count, self.index)

    def _all_gather(self, message: bytes) -> list[bytes]:
        try:
            lengths = multihost_utils.process_allgather(np.array([len(message)], np.int32))
            padded = np.zeros(max(1, int(lengths.max())), np.uint8)
            padded[: len(message)] = np.frombuffer(message, np.uint8)
            rows = multihost_utils.process_allgather(padded)
        except Exception as error:
            if self.is_peer_lost(error):
                raise LostPeer(error) from error
            raise
        return [row[: int(n)].tobytes() for row, n in zip(rows, lengths.ravel(), strict=True)]

    def close(self) -> None:
        jax.distributed.shutdown()

    def abandon(self) -> None:
        """Leaves the connection to the end of the process, at which JAX waits for the others."""

    @staticmethod
    def is_peer_lost(error: BaseException) -> bool:
        """Returns whether an exception says that another process is lost."""
        text = str(error).lower()
        words = ("gloo all", "unavailable:", "deadline_exceeded", "heartbeat", "remote error")
        kinds = (jax.errors.JaxRuntimeError, ValueError)
        return isinstance(error, kinds) and any(word in text for word in words)


class JaxEngine(Engine):
    """One program over the devices of all processes, which hold the whole model or parts of it.

    Args:
        processes: the processes.
        model_devices: devices that hold one copy of the model together, 0 for all of a process;
            None where each holds the whole.
    """

    def __init__(self, processes: Processes, model_devices: int | None):
        super().__init__(processes)
        self._copies = weakref.WeakKeyDictionary()
        devices = self._devices = keras.distribution.list_devices()
        own = len(devices) // processes.count
        if model_devices is None:
            self.num_replicas, self._devices_per_copy = len(devices), 1
            self._distribution = keras.distribution.DataParallel(
                devices=devices, auto_shard_dataset=False
            )
            return
        shared = self._devices_per_copy = model_devices or own
        if shared < 1 or own % shared:
            raise ValueError(
                "The devices that hold one copy of the model belong to one process: their number "
                f"must divide its {own} devices. Received: model_devices={shared}"
            )
        self.num_replicas = len(devices) // shared
        mesh = keras.distribution.DeviceMesh(
            (self.num_replicas, shared), ("batch", "model"), devices
        )
        self._distribution = keras.distribution.ModelParallel(
            layout_map=layout_map(mesh), batch_dim_name="batch", auto_shard_dataset=False
        )

    @property
    def num_devices(self) -> int:
        return len(self._devices)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if self._devices_per_copy == 1 or "divisible" not in str(error):
                raise
            raise ValueError(
                "The devices that hold one copy of the model together must divide the widths of "
                "its layers: give another number of them. "
                f"Received: model_devices={self._devices_per_copy} ({error})"
            ) from error

    def running(self) -> contextlib.AbstractContextManager:
        return self._distribution.scope()

    @contextlib.contextmanager
    def local(self) -> Iterator[None]:
        # Arrays of all processes can only be used by all of them together.
        if self.processes.count > 1:
            keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(self._distribution)

    def local_copy(self, model: keras.Model) -> keras.Model:
        if self.processes.count == 1:
            return model
        if model not in self._copies:
            with self.local():
                self._copies[model] = type(model).from_config(model.get_config())
            self._copies[model].track_clusters(model.cluster_loss.edges)
        return self._copies[model]

    def refresh(self, copy: keras.Model, model: keras.Model) -> None:
        if copy is model:
            return
        model.jax_state_sync()  # within fit() the weights are not on the model
        for local, variable in zip(copy.weights, model.weights, strict=True):
            local.assign(to_numpy(variable.value))


def to_numpy(array: jax.Array) -> np.ndarray:
    """Returns an array of which this process' devices hold every part, if not each of them all."""
    if array.is_fully_replicated:
        return np.asarray(array)
    result = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        result[shard.index] = shard.data
    return result

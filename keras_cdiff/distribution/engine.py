"""Training on several devices: the same model, batches and numbers, by the backend's engine."""

import contextlib

import keras

from keras_cdiff.distribution.processes import LostPeer, Processes


class Engine:
    """One device, and the base of several.

    Attributes:
        processes: the processes that train together.
        num_replicas: parts of equal size that a batch is cut into.
    """

    num_replicas = 1

    def __init__(self, processes: Processes):
        self.processes = processes

    def scope(self) -> contextlib.AbstractContextManager:
        """Returns the context in which the model is built and compiled."""
        return contextlib.nullcontext()

    def running(self) -> contextlib.AbstractContextManager:
        """Returns the context in which everything about the training happens."""
        return contextlib.nullcontext()

    def batches(self, dataset: object) -> object:
        """Returns what `fit` takes for the dataset of this process' share of each batch."""
        return dataset

    @property
    def shard(self) -> tuple[int, int]:
        """Which of how many equal parts of each batch this process reads, for `make_dataset`."""
        return self.processes.index, self.processes.count

    def local(self) -> contextlib.AbstractContextManager:
        """Returns the context in which networks are made and called on this process' own device."""
        return contextlib.nullcontext()

    def local_copy(self, model: keras.Model) -> keras.Model:
        """Returns a model that can be called on this process' own device, with the weights of the
        trained `DiffusionModel` after `refresh`; the model itself, if it can be.
        """
        return model

    def refresh(self, copy: keras.Model, model: keras.Model) -> None:
        """Gives the copy that `local_copy` returned the weights that the model has now."""

    def check_model(self, model: keras.Model) -> None:
        """Raises a ValueError unless all processes have the same weights."""

    def check_batch_size(self, batch_size: int) -> None:
        """Raises a ValueError unless a batch can be cut into equal parts."""
        if batch_size % self.num_replicas:
            raise ValueError(
                f"`batch_size` is that of all devices together: give a multiple of their number, "
                f"{self.num_replicas}. Received: batch_size={batch_size}"
            )

    def describe(self) -> str:
        """Returns in words how many devices there are; nothing for one."""
        if self.num_devices == 1:
            return ""
        count = self.processes.count
        words = f", {self.num_devices} devices of {count} process{'es' if count > 1 else ''}"
        per_copy = self.num_devices // self.num_replicas
        return words if per_copy == 1 else f"{words}, {per_copy} for a copy of the model"

    @property
    def num_devices(self) -> int:
        """Number of devices of all processes."""
        return self.num_replicas

    def is_peer_lost(self, error: BaseException) -> bool:
        """Returns whether an exception says that another process is lost."""
        return isinstance(error, LostPeer) or self.processes.is_peer_lost(error)

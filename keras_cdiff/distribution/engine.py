"""Training on several devices: the same model, batches and numbers, by the backend's engine."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from keras_cdiff.distribution.processes import LostPeer, Processes

KINDS = ("none", "data", "model")


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
        """Returns what `fit` takes.

        Args:
            dataset: what `make_dataset` returned for this process' share of each batch.
        """
        return dataset

    @property
    def shard(self) -> tuple[int, int]:
        """Which of how many equal parts of each batch this process reads, for `make_dataset`."""
        return self.processes.index, self.processes.count

    def local(self) -> contextlib.AbstractContextManager:
        """Returns the context in which networks are made and asked on this process' own device."""
        return contextlib.nullcontext()

    def local_copy(self, model: keras.Model) -> keras.Model:
        """Returns a model that can be asked on this process' own device, with the same weights
        after `refresh`; the model itself, if it can be.

        Args:
            model: the `DiffusionModel` that is trained.
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
        together = self.num_devices // self.num_replicas
        return words if together == 1 else f"{words}, {together} for a copy of the model"

    @property
    def num_devices(self) -> int:
        """Number of devices of all processes."""
        return self.num_replicas

    def is_loss(self, error: BaseException) -> bool:
        """Returns whether an exception says that another process is lost."""
        return isinstance(error, LostPeer) or self.processes.is_loss(error)


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
        from keras_cdiff.distribution.jax import whole

        return whole(variable.value)
    return keras.ops.convert_to_numpy(variable)

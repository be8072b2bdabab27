"""Several devices and processes on TensorFlow, by the strategies of tf.distribute.

Every replica keeps a copy of each variable of its own and updates it by itself; all compute the
same updates from the same sums. So a step is one graph without a meeting but for the sums.
"""

import contextlib
import itertools
import json
import os
import weakref
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_cdiff.distribution.cluster import Cluster
from keras_cdiff.distribution.engine import Engine
from keras_cdiff.distribution.processes import LostPeer, Processes


class TensorFlowProcesses(Processes):
    """Processes of one or more devices each.

    Args:
        cluster: who they are.
        timeout: not used; the strategy looks every 30 s whether the others answer.

    Attributes:
        strategy: the `tf.distribute.MultiWorkerMirroredStrategy`.
    """

    def __init__(self, cluster: Cluster, timeout: float):
        self.index, self.count = cluster.index, cluster.count
        os.environ["TF_CONFIG"] = json.dumps(
            {
                "cluster": {"worker": list(cluster.addresses)},
                "task": {"type": "worker", "index": self.index},
            }
        )
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._gathering = None

    def _all_gather(self, message: bytes) -> list[bytes]:
        try:
            lengths = self._gather(np.array([len(message)], np.int32))
            # Bytes cannot be gathered, and numbers of four of them can.
            words = np.frombuffer(message + b"\0" * (-len(message) % 4), np.int32)
            joined = self._gather(words) if lengths.max() else words
        except tf.errors.OpError as error:
            raise LostPeer(error) from error
        sizes = -(-lengths // 4)
        parts = np.split(joined, np.cumsum(sizes)[:-1])
        return [part.tobytes()[:length] for part, length in zip(parts, lengths, strict=True)]

    def _gather(self, row: np.ndarray) -> np.ndarray:
        """Returns the rows of all processes one after the other."""
        if self._gathering is None:
            signature = [tf.TensorSpec([None], tf.int32)]
            self._gathering = tf.function(self._gather_on_devices, input_signature=signature)
        return self._gathering(tf.constant(row)).numpy()

    def _gather_on_devices(self, row: tf.Tensor) -> tf.Tensor:
        devices = self.strategy.num_replicas_in_sync // self.count

        def of_device() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % devices == 0
            return context.all_gather(row if first else row[:0], axis=0)

        return self.strategy.experimental_local_results(self.strategy.run(of_device))[0]

    def close(self) -> None:
        self.barrier()

    def abandon(self) -> None:
        """Leaves the connection to the end of the process."""

    @staticmethod
    def is_peer_lost(error: BaseException) -> bool:
        """Returns whether an exception says that another process is lost."""
        kinds = (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.DeadlineExceededError,
        )
        if isinstance(error, kinds):
            return True
        # Classes that local faults have too.
        others = (tf.errors.CancelledError, tf.errors.InternalError)
        text = str(error).lower()
        return isinstance(error, others) and ("collective" in text or "connection" in text)


class TensorFlowEngine(Engine):
    """A strategy of tf.distribute: for the workers of a cluster, the TPUs, the GPUs or else the
    CPUs of this process.
    """

    def __init__(self, processes: Processes):
        super().__init__(processes)
        self.strategy = prepare(getattr(processes, "strategy", None) or _own_strategy())
        self.num_replicas = self.strategy.num_replicas_in_sync

    def scope(self) -> contextlib.AbstractContextManager:
        return variable_scope(self.strategy)

    def batches(self, dataset: object) -> object:
        if self.num_replicas == 1:
            return dataset
        devices = self.num_replicas // self.processes.count
        begun = iter(dataset)
        first = next(begun)
        begun = itertools.chain([first], begun)
        signature = {
            name: tf.TensorSpec((len(rows) // devices, *rows.shape[1:]), rows.dtype)
            for name, rows in first.items()
        }

        def parts() -> Iterator[dict]:
            nonlocal begun
            batches, begun = begun if begun is not None else iter(dataset), None
            for batch in batches:
                split = {name: np.split(rows, devices) for name, rows in batch.items()}
                for device in range(devices):
                    yield {name: rows[device] for name, rows in split.items()}

        def of_process(context: object) -> tf.data.Dataset:
            return tf.data.Dataset.from_generator(parts, output_signature=signature)

        return self.strategy.distribute_datasets_from_function(of_process)


def _own_strategy() -> tf.distribute.Strategy:
    if tf.config.list_physical_devices("TPU"):
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect("local")
        return tf.distribute.TPUStrategy(resolver)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


_prepared = weakref.WeakSet()


def prepare(strategy: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """Makes a strategy let its replicas update their own copies of variables, as TPUs do.

    By default those of GPUs and CPUs meet for each update, which they cannot within the branches of
    a graph, such as that in which a step is skipped whose gradient is not finite.
    """
    strategy.extended._use_merge_call = lambda: False
    _prepared.add(strategy)
    return strategy


def check_prepared(strategy: tf.distribute.Strategy) -> None:
    """Raises a ValueError if the strategy of a model is not one of keras_cdiff's own."""
    if strategy not in _prepared:
        raise ValueError(
            "Build and compile the model in the scope of keras_cdiff.distribution.distribute, "
            "which makes the strategy, instead of in that of a strategy of your own. "
            f"Received: strategy={type(strategy).__name__}"
        )


@contextlib.contextmanager
def variable_scope(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Within it variables are created, a copy for each replica of a strategy."""
    if strategy.num_replicas_in_sync == 1:
        yield
        return

    def one_each(next_creator: object, **kwargs: object) -> tf.Variable:
        kwargs["aggregation"] = tf.VariableAggregation.NONE
        kwargs["synchronization"] = tf.VariableSynchronization.AUTO
        return next_creator(**kwargs)

    with strategy.scope(), tf.variable_creator_scope(one_each):
        yield


def prepare_optimizer(
    optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy
) -> None:
    """Makes an optimizer, and those inside it, take gradients as the sums that they are already.

    Raises:
        ValueError: if it was made outside of the scope of the strategy.
    """
    if optimizer._distribution_strategy is not strategy:
        raise ValueError(
            "The optimizer of a model of several devices must be made in the scope of its engine, "
            f"too. Received: optimizer={optimizer.name!r}"
        )
    optimizer._all_reduce_sum_gradients = list
    if hasattr(optimizer, "inner_optimizer"):
        prepare_optimizer(optimizer.inner_optimizer, strategy)


def rows_of_all(rows: tuple[tf.Tensor, ...]) -> list[tf.Tensor]:
    """Returns the rows (B,) of all replicas, one after the other, without gradient."""
    own = tf.stop_gradient(tf.stack(rows, axis=1))
    everyone = tf.distribute.get_replica_context().all_gather(own, axis=0)
    return tf.unstack(everyone, num=len(rows), axis=1)


def on_each_replica(
    strategy: tf.distribute.Strategy, step: Callable[[object], dict], steps: int, eagerly: bool
) -> Callable[[Iterator], dict]:
    """Returns what `fit` calls with its iterator: `steps` times a step on each replica, and the
    numbers of the first of this process, as all return the same.

    Keras' own function takes the mean of scalars over processes along an axis that they have not.
    """

    def on_next(iterator: Iterator) -> dict:
        for _ in range(steps):
            logs = strategy.run(step, args=(next(iterator),))
        return {k: strategy.experimental_local_results(v)[0] for k, v in logs.items()}

    call = on_next if eagerly else tf.function(on_next, reduce_retracing=True)

    def function(iterator: Iterator) -> dict:
        if not isinstance(iterator, tf.distribute.DistributedIterator):
            raise ValueError(
                "Every device would get the whole batch: use fit and evaluate for a model of "
                "several devices, instead of train_on_batch and test_on_batch. "
                f"Received: batches of {type(iterator).__name__}"
            )
        return call(iterator)

    return function

"""What a training step keeps track of: moving averages of the weights, each carried by a copy of
the network, and the losses by noise level.
"""

from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.ema import Decay

Tensor = keras.KerasTensor


def check_decays(ema: Decay | Sequence[Decay] | None) -> tuple[Decay, ...]:
    """Returns the decay profiles that `ema` stands for.

    Raises:
        ValueError: if it is neither a `Decay`, nor several, nor None.
    """
    decays = () if ema is None else (ema,) if isinstance(ema, Decay) else ema
    several = isinstance(decays, list | tuple) and (ema is None or len(decays) > 0)
    if not several or not all(isinstance(decay, Decay) for decay in decays):
        raise ValueError(
            "`ema` must be a Decay, a sequence of them for several averages, or None. "
            f"Received: ema={ema!r}"
        )
    return tuple(decays)


def copy_network(network: keras.Model) -> keras.Model:
    """Returns a network of the same weights that is not trained."""
    copy = type(network).from_config(network.get_config())
    copy.trainable = False
    for average, weight in zip(copy.weights, network.weights, strict=True):
        average.assign(ops.copy(weight))
    return copy


def move_averages(
    averages: Iterable[tuple[Decay, keras.Model]],
    network: keras.Model,
    update: Tensor,
    batch_size: Tensor | int,
    moved: Tensor,
) -> None:
    """Moves averages towards the weights of a network: average += rate (weight - average).

    Args:
        averages: each decay with the copy of the network that carries its average.
        network: the network that is trained.
        update: (), the number of updates so far, this one included.
        batch_size: images of an update.
        moved: (), whether the step has changed the weights; if not, the averages stay.
    """
    for decay, copy in averages:
        rate = ops.where(moved, decay.rate(update, batch_size), 0.0)
        for average, weight in zip(copy.weights, network.weights, strict=True):
            value = ops.convert_to_tensor(average)
            average.assign(value + rate * (ops.convert_to_tensor(weight) - value))


def accumulation_steps(optimizer: keras.optimizers.Optimizer) -> int:
    """Returns how many batches make one update of the innermost optimizer."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer.gradient_accumulation_steps or 1


class LastValue(keras.metrics.Metric):
    """The value of the latest update, where Keras' `loss` is the mean since the epoch began."""

    def __init__(self, name: str = "last_value"):
        super().__init__(name=name, dtype="float32")
        self.value = self.add_variable((), "zeros", dtype="float32", name="value")

    def update_state(self, value: Tensor) -> None:
        self.value.assign(ops.cast(value, "float32"))

    def result(self) -> Tensor:
        return ops.convert_to_tensor(self.value)


class LossPerCluster(keras.metrics.Metric):
    """Mean loss of the samples whose noise level lies in each of N clusters; NaN for a cluster
    without samples.

    Args:
        edges: N + 1 ascending levels; levels outside are counted in the first or the last cluster.
    """

    def __init__(self, edges: Sequence[float], name: str = "cluster_loss"):
        super().__init__(name=name, dtype="float32")
        self.edges = tuple(float(edge) for edge in edges)
        if len(self.edges) < 2 or not np.all(np.diff(self.edges) > 0):
            raise ValueError(
                "`edges` must hold at least two noise levels in strictly ascending order. "
                f"Received: edges={self.edges}"
            )
        count = len(self.edges) - 1
        self.total = self.add_variable((count,), "zeros", dtype="float32", name="total")
        self.count = self.add_variable((count,), "zeros", dtype="float32", name="count")

    def update_state(self, loss: Tensor, level: Tensor) -> None:
        """Adds the losses (B,) of samples at `level` (B,)."""
        inner = ops.convert_to_tensor(self.edges[1:-1], dtype="float32")
        cluster = ops.sum(ops.cast(level[:, None] >= inner[None, :], "int32"), axis=1)
        member = ops.one_hot(cluster, len(self.edges) - 1, dtype="float32")
        # A sum, not a matrix product: one loss that is not finite must not reach the other
        # clusters.
        loss = ops.where(member > 0, loss[:, None], 0.0)
        self.total.assign(self.total + ops.sum(loss, axis=0))
        self.count.assign(self.count + ops.sum(member, axis=0))

    def result(self) -> Tensor:
        count = ops.convert_to_tensor(self.count)
        return ops.where(count > 0, self.total / ops.maximum(count, 1.0), float("nan"))

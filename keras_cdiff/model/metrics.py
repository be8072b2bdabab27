"""Metrics of a training step that Keras does not have: the last batch's value, and means by noise
level.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

Tensor = keras.KerasTensor


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

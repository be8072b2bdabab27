"""Which rows of the global batch are computed here, and random numbers that do not depend on it.

Where every device computes rows of its own, a replica's step sees B / count samples of the B of the
batch: those from index B / count on. What is random about a sample is drawn for the whole batch by
every replica, which keeps its own rows: so it is the same for any number of replicas. On JAX, where
a step is that of the global batch, the compiler cuts the drawing into parts.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
from keras import ops

Tensor = keras.KerasTensor


class Replica(NamedTuple):
    """One of some equal parts of the global batch."""

    index: Tensor | int
    count: int


_WHOLE = Replica(0, 1)
_current = contextvars.ContextVar("replica", default=_WHOLE)


def replica() -> Replica:
    """Returns the part that is computed here; the whole batch outside of `acting_as`."""
    return _current.get()


@contextlib.contextmanager
def acting_as(index: Tensor | int, count: int) -> Iterator[None]:
    """Within it, and on its thread, a batch is that of replica `index` of `count`."""
    token = _current.set(Replica(index, count))
    try:
        yield
    finally:
        _current.reset(token)


def uniform(shape: tuple, seed: keras.random.SeedGenerator) -> Tensor:
    """Returns `keras.random.uniform` for the rows of this replica, `shape[0]` of them."""
    return _own_rows(lambda whole: keras.random.uniform(whole, seed=seed), shape)


def normal(shape: tuple, seed: keras.random.SeedGenerator) -> Tensor:
    """Returns `keras.random.normal` for the rows of this replica, `shape[0]` of them."""
    return _own_rows(lambda whole: keras.random.normal(whole, seed=seed), shape)


def dropout(x: Tensor, rate: float, seed: keras.random.SeedGenerator) -> Tensor:
    """Returns `keras.random.dropout` of the rows `x` of this replica."""
    if replica().count == 1:
        return keras.random.dropout(x, rate, seed=seed)

    def factors(whole: tuple) -> Tensor:
        return keras.random.dropout(ops.ones(whole, dtype=x.dtype), rate, seed=seed)

    return x * _own_rows(factors, ops.shape(x))


def _own_rows(draw: Callable[[tuple], Tensor], shape: tuple) -> Tensor:
    index, count = replica()
    if count == 1:
        return draw(shape)
    rows = shape[0]
    whole = draw((count * rows, *shape[1:]))
    # A copy: PyTorch would keep the whole for the backward pass.
    return ops.copy(ops.slice(whole, (index * rows, *[0] * (len(shape) - 1)), tuple(shape)))

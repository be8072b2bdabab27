"""The moving averages of a model's weights, each carried by a copy of its network."""

from collections.abc import Iterable, Sequence

import keras
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

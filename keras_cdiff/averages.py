"""The moving averages of a model's weights, each carried by a copy of its network."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_cdiff.ema import Decay
from keras_cdiff.guarded_optimizer import accumulation_steps

Tensor = keras.KerasTensor


class Averages:
    """Mixin of a model with a backbone: what `ema` asks for, kept and updated."""

    def keep_averages(self, ema: Decay | Sequence[Decay] | None) -> None:
        """Starts an average for each decay, from the backbone's weights as they are.

        Args:
            ema: a decay profile, several, or None for no average.

        Raises:
            ValueError: if it is anything else.
        """
        decays = () if ema is None else (ema,) if isinstance(ema, Decay) else ema
        several = isinstance(decays, list | tuple) and (ema is None or len(decays) > 0)
        if not several or not all(isinstance(decay, Decay) for decay in decays):
            raise ValueError(
                "`ema` must be a Decay, a sequence of them for several averages, or None. "
                f"Received: ema={ema!r}"
            )
        self.ema = ema if ema is None or isinstance(ema, Decay) else tuple(ema)
        networks = []
        for _ in decays:
            network = type(self.backbone).from_config(self.backbone.get_config())
            network.trainable = False
            for average, weight in zip(network.weights, self.backbone.weights, strict=True):
                average.assign(ops.copy(weight))
            networks.append(network)
        self.ema_backbone = networks[0] if networks else None
        self.further_averages = networks[1:]

    def averages(self) -> list[tuple[Decay, keras.Model]]:
        """Returns each decay with the network that carries its average; the first is
        `ema_backbone`.
        """
        decays = self.ema if isinstance(self.ema, tuple) else (self.ema,)
        if self.ema_backbone is None:
            return []
        return list(zip(decays, (self.ema_backbone, *self.further_averages), strict=True))

    def network(self, use_ema: bool) -> keras.Model:
        """Returns the network that answers: the first average, if it is asked for and there is one,
        else the backbone.
        """
        return self.ema_backbone if use_ema and self.ema_backbone is not None else self.backbone

    def update_averages(self, batch_size: Tensor | int, before: Tensor, after: Tensor) -> None:
        """Counts the step and, if it moved the weights, moves the averages towards them.

        Gradient accumulation counts as the larger batches it stands for.

        Args:
            batch_size: images of the step.
            before: the optimizer's `iterations` before the step, which count updates: a step that
                is skipped or only accumulated leaves them.
            after: the same after the step.
        """
        self.iteration.assign_add(1)
        accumulated = accumulation_steps(self.optimizer)
        moved = ops.not_equal(before, after)
        update = ops.maximum(ops.convert_to_tensor(self.iteration) // accumulated, 1)
        for decay, network in self.averages():
            rate = decay.rate(update, batch_size * accumulated)
            rate = ops.where(moved, rate, 0.0)
            for average, weight in zip(network.weights, self.backbone.weights, strict=True):
                value = ops.convert_to_tensor(average)
                average.assign(value + rate * (ops.convert_to_tensor(weight) - value))

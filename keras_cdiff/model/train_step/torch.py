"""One training step on PyTorch, where the moving averages must stay out of the autograd graph, and
the gradients of several processes are added up.
"""

import contextlib

import keras
import torch

from keras_cdiff.distribution.replica import replica
from keras_cdiff.distribution.torch import add_up, rows_of_all

Tensor = keras.KerasTensor


class TrainStep:
    """Mixin before `keras.Model`: Keras' own step on a packed batch, then the moving averages."""

    def train_step(self, data: object) -> dict:
        batch = self.pack(data)
        size = batch[0]["image"].shape[0] * replica().count
        before = keras.ops.copy(self.optimizer.iterations)
        step = super().train_step if replica().count == 1 else self._replica_step
        logs = step(batch)
        with torch.no_grad():
            after = keras.ops.convert_to_tensor(self.optimizer.iterations)
            self.update_averages(size, before, after)
        return logs

    def test_step(self, data: object) -> dict:
        batch = self.pack(data)
        if replica().count == 1:
            return super().test_step(batch)
        x, _, sample_weight = batch
        y_pred = self(x, training=False)
        losses = self.weighted_losses(y_pred, sample_weight)
        return self.record_batch(*rows_of_all((losses, y_pred["level"])))

    def _replica_step(self, batch: tuple) -> dict:
        """Keras' step, with the sum of all replicas' gradients."""
        x, _, sample_weight = batch
        self.zero_grad()
        y_pred = self(x, training=True)
        losses = self.weighted_losses(y_pred, sample_weight)
        logs = self.record_batch(*rows_of_all((losses, y_pred["level"])))
        share = losses.mean() / replica().count  # of the global mean
        self.optimizer.scale_loss(share).backward()
        weights = self.trainable_weights[:]
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            add_up([gradient for gradient in gradients if gradient is not None])
            self.optimizer.apply(gradients, weights)
        return logs

    def compile(self, *args: object, **kwargs: object) -> None:
        if replica().count > 1 and kwargs.get("jit_compile") is True:
            raise ValueError(
                "torch.compile compiles no step that several processes share: leave `jit_compile` "
                "at 'auto'. Received: jit_compile=True"
            )
        super().compile(*args, **kwargs)

    def variable_scope(self) -> contextlib.AbstractContextManager:
        """Returns the context in which the model's variables are created."""
        return contextlib.nullcontext()

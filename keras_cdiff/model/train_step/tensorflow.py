"""One training step on TensorFlow, where assignments inside the graph are enough, and a strategy
runs it once on each device.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from keras_cdiff.distribution import tensorflow as engine
from keras_cdiff.distribution.replica import acting_as, replica

Tensor = keras.KerasTensor


class TrainStep:
    """Mixin before `keras.Model`: Keras' own step on a packed batch, then the moving averages."""

    def train_step(self, data: object) -> dict:
        batch = self.pack(data)
        with self._as_replica():
            size = tf.shape(batch[0]["image"])[0] * replica().count
            before = tf.identity(self.optimizer.iterations)
            step = super().train_step if replica().count == 1 else self._replica_step
            logs = step(batch)
            after = tf.identity(self.optimizer.iterations)
            self.update_averages(size, before, after)
        return logs

    def test_step(self, data: object) -> dict:
        batch = self.pack(data)
        with self._as_replica():
            if replica().count == 1:
                return super().test_step(batch)
            x, _, sample_weight = batch
            y_pred = self(x, training=False)
            losses = self.weighted_losses(y_pred, sample_weight)
            return self.record_batch(*engine.rows_of_all((losses, y_pred["level"])))

    def _replica_step(self, batch: tuple) -> dict:
        """Keras' step, with the sum of all replicas' gradients, before these are clipped."""
        x, _, sample_weight = batch
        losses, level, gradients = self._of_replica()(x, sample_weight)
        logs = self.record_batch(*engine.rows_of_all((losses, level)))
        there = [gradient for gradient in gradients if gradient is not None]
        summed = iter(tf.distribute.get_replica_context().all_reduce("SUM", there))
        gradients = [gradient if gradient is None else next(summed) for gradient in gradients]
        self.optimizer.apply(gradients, self.trainable_weights)
        return logs

    def _of_replica(self) -> Callable[[dict, Tensor | None], tuple]:
        """Returns `_gradients`, compiled for the calling replica if the model is compiled by XLA:
        its variables are part of what is compiled.
        """
        index = replica().index
        if self.run_eagerly or not self.jit_compile or not isinstance(index, int):
            return self._gradients
        if index not in self._compiled:
            self._compiled[index] = tf.function(self._gradients, jit_compile=True)
        return self._compiled[index]

    def _gradients(self, x: dict, sample_weight: Tensor | None) -> tuple[Tensor, Tensor, list]:
        """Returns losses and levels (B,) of this replica, and its part of the gradients."""
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            losses = self.weighted_losses(y_pred, sample_weight)
            loss = self.optimizer.scale_loss(tf.reduce_mean(losses) / replica().count)
        gradients = tape.gradient(loss, [weight.value for weight in self.trainable_weights])
        # That of a table's lookup may come as rows.
        gradients = [g if g is None else tf.convert_to_tensor(g) for g in gradients]
        return losses, y_pred["level"], gradients

    @contextlib.contextmanager
    def _as_replica(self) -> Iterator[None]:
        context = tf.distribute.get_replica_context()
        if not self.is_replicated or context is None:
            yield
            return
        engine.check_prepared(self.distribute_strategy)
        index = context.replica_id_in_sync_group
        known = tf.get_static_value(index)  # on TPUs one graph is for all
        count = self.distribute_strategy.num_replicas_in_sync
        with acting_as(index if known is None else int(known), count):
            yield

    def make_train_function(self, force: bool = False) -> None:
        if not self.is_replicated:
            super().make_train_function(force)
        elif self.train_function is None or force:
            self.train_function = self._on_each_replica(self.train_step)

    def make_test_function(self, force: bool = False) -> None:
        if not self.is_replicated:
            super().make_test_function(force)
        elif self.test_function is None or force:
            self.test_function = self._on_each_replica(self.test_step)

    def _on_each_replica(self, step: Callable[[object], dict]) -> Callable[[Iterator], dict]:
        strategy = self.distribute_strategy
        return engine.on_each_replica(strategy, step, self.steps_per_execution, self.run_eagerly)

    @property
    def is_replicated(self) -> bool:
        """Whether a strategy runs each step on several devices."""
        return self.distribute_strategy.num_replicas_in_sync > 1

    def compile(self, *args: object, **kwargs: object) -> None:
        self._compiled = {}
        super().compile(*args, **kwargs)
        if self.is_replicated:
            engine.prepare_optimizer(self.optimizer, self.distribute_strategy)
            self.optimizer.build(self.trainable_variables)

    def variable_scope(self) -> contextlib.AbstractContextManager:
        """Returns the context in which the model's variables are created."""
        return engine.variable_scope(self.distribute_strategy)

    def _maybe_symbolic_build(self, *args: object, **kwargs: object) -> None:
        # Keras would read a batch for it; the model is built.
        pass

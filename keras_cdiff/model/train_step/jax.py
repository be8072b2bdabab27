"""One training step on JAX, where state goes in and comes out as lists of arrays, and the batch is
the global one on any number of devices.
"""

import contextlib

import keras


class TrainStep:
    """Mixin before `keras.Model`: Keras' own step on a packed batch, then the moving averages."""

    def train_step(self, state: tuple, data: object) -> tuple[dict, tuple]:
        batch = self.pack(data)
        before = self._updates(state[2])
        logs, state = super().train_step(state, batch)
        trainable, non_trainable, optimizer, metrics = state
        values = [*trainable, *non_trainable]
        variables = [*self.trainable_variables, *self.non_trainable_variables]
        with keras.StatelessScope(zip(variables, values, strict=True)) as scope:
            self.update_averages(batch[0]["image"].shape[0], before, self._updates(optimizer))
        non_trainable = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return logs, (trainable, non_trainable, optimizer, metrics)

    def _updates(self, optimizer: list) -> object:
        with keras.StatelessScope(zip(self.optimizer.variables, optimizer, strict=True)):
            return keras.ops.convert_to_tensor(self.optimizer.iterations)

    def test_step(self, state: tuple, data: object) -> tuple[dict, tuple]:
        return super().test_step(state, self.pack(data))

    def variable_scope(self) -> contextlib.AbstractContextManager:
        """Returns the context in which the model's variables are created."""
        return contextlib.nullcontext()

"""One training step on PyTorch, where the moving averages must stay out of the autograd graph."""

import keras
import torch


class TrainStep:
    """Mixin before `keras.Model`: Keras' own step on a packed batch, then the moving averages."""

    def train_step(self, data: object) -> dict:
        batch = self.pack(data)
        before = keras.ops.copy(self.optimizer.iterations)
        logs = super().train_step(batch)
        with torch.no_grad():
            after = keras.ops.convert_to_tensor(self.optimizer.iterations)
            self.update_averages(batch[0]["image"].shape[0], before, after)
        return logs

    def test_step(self, data: object) -> dict:
        return super().test_step(self.pack(data))

"""One training step on TensorFlow, where assignments inside the graph are enough."""

import tensorflow as tf


class TrainStep:
    """Mixin before `keras.Model`: Keras' own step on a packed batch, then the moving averages."""

    def train_step(self, data: object) -> dict:
        batch = self.pack(data)
        before = tf.identity(self.optimizer.iterations)
        logs = super().train_step(batch)
        after = tf.identity(self.optimizer.iterations)
        self.update_averages(tf.shape(batch[0]["image"])[0], before, after)
        return logs

    def test_step(self, data: object) -> dict:
        return super().test_step(self.pack(data))

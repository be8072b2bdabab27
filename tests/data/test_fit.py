import itertools

import keras
import numpy as np
from keras import ops

from keras_cdiff.data import make_dataset, open_source


class LabelFromColour(keras.Model):
    """The smallest model that trains on {"image", "label"}."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(ops.mean(inputs["image"], axis=(1, 2)))[:, 0]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred - ops.cast(x["label"], y_pred.dtype)))


def test_fit_sees_the_batches_in_order_and_goes_on_between_epochs():
    dataset = make_dataset(
        open_source("emoji"), image_size=8, batch_size=4, horizontal_flip=True, start_step=5
    )
    model = LabelFromColour()
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(dataset, steps_per_epoch=3, epochs=2, shuffle=False, verbose=0)

    losses = []
    for batch in itertools.islice(dataset, 6):
        predicted = ops.convert_to_numpy(model(batch))
        losses.append(np.mean((predicted - batch["label"]) ** 2))
    expected = np.reshape(losses, (2, 3)).mean(axis=1)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)
    assert len({f"{loss:.4f}" for loss in losses}) == 6

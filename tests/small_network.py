"""A network that compiles fast, for tests that have nothing to say about networks."""

import keras
from keras import ops

from keras_cdiff.backbones.layers import LabelEmbedding, drop_labels


@keras.saving.register_keras_serializable("tests")
class SmallNetwork(keras.Model):
    """Mixes channels, level, label and context; counts how often Python runs it."""

    def __init__(
        self,
        image_size=8,
        channels=3,
        out_channels=None,
        num_classes=3,
        label_dropout=0.1,
        context_width=0,
        context_dropout=0.1,
        dtype=None,
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.sizes = {
            "image_size": image_size,
            "channels": channels,
            "out_channels": out_channels or channels,
            "num_classes": num_classes,
            "label_dropout": label_dropout,
            "context_width": context_width,
            "context_dropout": context_dropout,
        }
        for name, value in self.sizes.items():
            setattr(self, name, value)
        self.seed_generator = keras.random.SeedGenerator(0)
        self.mix = keras.layers.Dense(self.out_channels, dtype=dtype, name="mix")
        self.mix.build((None, channels + 1))
        if num_classes:
            self.embedding = LabelEmbedding(
                num_classes + 1,
                self.out_channels,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=0.3),
                dtype="float32",
                name="embedding",
            )
            self.embedding.build()
        self.built = True
        self.num_calls = 0

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        self.num_calls += 1
        told = ops.sin(ops.reshape(level, (-1, 1, 1, 1)))
        told = ops.broadcast_to(told, (*ops.shape(x)[:3], 1))
        output = ops.cast(self.mix(ops.concatenate([x, told], axis=-1)), "float32")
        if self.num_classes:
            if label is None:
                label = ops.full_like(level, self.num_classes, dtype="int32")
            elif training and self.label_dropout:
                label = drop_labels(
                    label, self.label_dropout, self.num_classes, self.seed_generator
                )
            output = output + self.embedding(label)[:, None, None, :]
        if context is not None:
            output = output + ops.mean(context, axis=(1, 2))[:, None, None, None]
        return output

    def get_config(self):
        return {**self.sizes, "dtype": keras.saving.serialize_keras_object(self.dtype_policy)}

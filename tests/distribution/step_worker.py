"""Steps of which much depends on the batch being one: step_worker.py FILE gets what they leave."""

import os
import sys

import keras
import numpy as np
from keras import ops
from small_network import SmallNetwork

from keras_cdiff import (
    DiffusionModel,
    GuardedOptimizer,
    augmentation,
    backbones,
    distribution,
    ema,
    objectives,
    parameterizations,
    schedules,
    training,
)
from keras_cdiff.distribution import replica


def parts():
    return schedules.EDM(), parameterizations.EDMPreconditioning(), objectives.LogNormalSigma()


class DropoutNetwork(SmallNetwork):
    augment_features = 9

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        if training:
            x = x + ops.mean(augment, axis=-1)[:, None, None, None]
            x = replica.dropout(x, 0.3, self.seed_generator)
        return super().call(x, level, label, training=training)


def make_random():
    """A model with dropout of pixels and labels that is told of its augmentation, and two batches
    an update.
    """
    model = DiffusionModel(
        DropoutNetwork(label_dropout=0.3),
        *parts(),
        ema=ema.WarmupDecay(500),
        augmentation=augmentation.Augmentation(0.5),
    )
    optimizer = keras.optimizers.SGD(
        1e-2, momentum=0.9, global_clipnorm=0.5, gradient_accumulation_steps=2
    )
    return model, GuardedOptimizer(optimizer)


def make_half():
    """A DiT in float16 with a loss scale."""
    network = backbones.DiT(
        image_size=8, num_classes=3, width=16, depth=1, num_heads=2, dtype="mixed_float16"
    )
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(1e-3, epsilon=1e-3))
    return DiffusionModel(network, *parts(), ema=ema.FixedDecay(0.5)), GuardedOptimizer(optimizer)


def batches(engine, count, spoilt=None):
    """This process' rows of batches of eight; in one of them the last image is not a number."""
    index, shards = engine.shard
    rng = np.random.default_rng(count)
    made = []
    for number in range(count):
        image = rng.uniform(-1, 1, (8, 8, 8, 3)).astype("float32")
        if number == spoilt:
            image[-1] = np.nan
        batch = {"image": image, "label": np.arange(8, dtype="int32") % 3}
        made.append({name: np.split(rows, shards)[index] for name, rows in batch.items()})
    shared = engine.batches(made)
    return ((batch,) for batch in made) if shared is made else shared


def take_steps(engine):
    """Returns what some steps of both models leave, by names."""
    left = {}
    for name, make in (("random", make_random), ("half", make_half)):
        with engine.scope():
            keras.utils.set_random_seed(0)
            model, optimizer = make()
            # XLA compiles both on JAX, and the smaller one on TensorFlow, which takes longer.
            on_tensorflow = keras.backend.backend() == "tensorflow"
            model.compile(optimizer, jit_compile=name == "random" if on_tensorflow else "auto")
            model.optimizer.build(model.trainable_variables)
        losses = []
        keep = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda _, logs, kept=losses: kept.append(float(logs["batch_loss"]))
        )
        model.fit(
            batches(engine, 6, spoilt=3),
            steps_per_epoch=6,
            shuffle=False,
            verbose=0,
            callbacks=[keep],
        )
        left |= {f"{name}/{key}": array for key, array in training.snapshot(model).items()}
        left[f"{name}/losses"] = np.array(losses)
        if name == "half":
            evaluated = model.evaluate(batches(engine, 2), steps=2, verbose=0, return_dict=True)
            left[f"{name}/evaluated"] = np.array(evaluated["loss"])
    return left


def refusals():
    """What TensorFlow is not to do with a strategy, in words."""
    import tensorflow as tf

    words = []
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model, optimizer = make_random()
        model.compile(optimizer)
    with distribution.distribute("data") as engine:
        with engine.scope():
            ours, _ = make_random()
            ours.compile("sgd")
        calls = (
            lambda: model.fit(np.zeros((8, 8, 8, 3), "float32"), batch_size=8, verbose=0),
            lambda: ours.compile(optimizer),
            lambda: ours.train_on_batch(np.zeros((8, 8, 8, 3), "float32")),
        )
        for call in calls:
            try:
                call()
                words.append("nothing")
            except ValueError as error:
                words.append(str(error))
    return words


if __name__ == "__main__":
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * int(os.environ["DEVICES"])
        tf.config.set_logical_device_configuration(cpu, devices)
    with (
        distribution.connected(distribution.find_cluster()) as processes,
        distribution.distribute("data", processes) as engine,
    ):
        left = take_steps(engine)
        if keras.backend.backend() == "tensorflow":
            left["refusals"] = np.array(refusals())
        if processes.first:
            np.savez(sys.argv[1], **left)

"""Trains in one of the processes of a test: train_worker.py CONFIG WORKDIR KIND [PROCESS STEP].

CONFIG is a JSON file; a PROCESS, by its number, kills itself after a STEP.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras

config, workdir, kind, *killed = sys.argv[1:]
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * int(os.environ["DEVICES"])
    tf.config.set_logical_device_configuration(cpu, devices)

sys.path.insert(0, str(Path(__file__).parents[2] / "apps"))

import launch  # noqa: E402
from absl import flags  # noqa: E402

from keras_cdiff import distribution, training  # noqa: E402

launch.define_machine()
flags.FLAGS(["train_worker"])
with (
    launch.connected() as processes,
    distribution.distribute(kind, processes, 4 if kind == "model" else None) as engine,
):
    if killed and processes.index == int(killed[0]):
        original = training.StopAt.on_train_batch_end

        def then_die(callback, batch, logs=None):
            original(callback, batch, logs)
            if callback.step == int(killed[1]):
                os.kill(os.getpid(), signal.SIGKILL)

        training.StopAt.on_train_batch_end = then_die
    training.train(json.loads(Path(config).read_text()), workdir, engine=engine)

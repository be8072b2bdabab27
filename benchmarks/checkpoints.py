"""What a checkpoint costs a training run, in one run.

One compiled model trains the same number of steps in turns, with a checkpoint after the fifth and
with none. The difference is the cost: the copy of the state, for which training waits, and whatever
the thread that writes takes from the steps that go on meanwhile.

    KERAS_BACKEND=jax python benchmarks/checkpoints.py           # or --width=384 --depth=12
"""

import argparse
import os
import statistics
import tempfile
import time

import keras
import numpy as np

from keras_cdiff import DiffusionModel
from keras_cdiff.training import CheckpointFolder, snapshot
from keras_cdiff.training.checkpoint_callback import BackgroundWriter


class Clock(keras.callbacks.Callback):
    """Seconds of training after the first, slower steps of a call to fit."""

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits for the step
        if batch == 1:
            self.began = time.perf_counter()
        self.seconds = time.perf_counter() - getattr(self, "began", 0)


class OneCheckpoint(keras.callbacks.Callback):
    """Saves after the fifth step, as `CheckpointCallback` does, and times the parts of it."""

    def __init__(self, path):
        super().__init__()
        self.folder = CheckpointFolder(path, keep_last=1)
        self.writer = BackgroundWriter(self)
        self.waited, self.written = [], []

    def save(self, *arguments):
        began = time.perf_counter()
        self.folder.save(*arguments)
        self.written.append(time.perf_counter() - began)

    def on_train_batch_end(self, batch, logs=None):
        if batch == 5:
            began = time.perf_counter()
            self.writer.save(len(self.waited), snapshot(self.model), {})
            self.waited.append(time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30, help="of each call of fit")
    parser.add_argument("--every", type=int, default=500, help="steps of which the share is taken")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--folder", help="where the checkpoints are written; default: temporary")
    options = parser.parse_args()
    model = DiffusionModel.from_preset("dit_emoji16", width=options.width, depth=options.depth)
    model.compile()
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (32, 16, 16, 3)).astype("float32")
    labels = rng.integers(0, 8, 32).astype("int32")

    def seconds(callbacks):
        clock = Clock()
        model.fit(
            ((images, labels) for _ in range(options.steps)),
            steps_per_epoch=options.steps,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, clock],
        )
        return clock.seconds

    with tempfile.TemporaryDirectory(dir=options.folder) as path:
        saving = OneCheckpoint(path)
        seconds([saving])
        plain, saved = [], []
        for _ in range(options.rounds):
            plain.append(seconds([]))
            saved.append(seconds([saving]))
            saving.writer.wait()
        (step,) = saving.folder.steps()
        megabytes = os.path.getsize(saving.folder.file(step)) / 1e6
    step_seconds = statistics.median(plain) / (options.steps - 2)
    costs = [b - a for a, b in zip(plain, saved, strict=True)]
    whole = options.every * step_seconds
    shares = [100 * cost / whole for cost in costs]
    waited = statistics.median(saving.waited[1:])
    print(
        f"{keras.backend.backend()}: {model.backbone.count_params():,} parameters, "
        f"{1000 * step_seconds:.0f} ms a step, {megabytes:.0f} MB a checkpoint. Training waits "
        f"{1000 * waited:.0f} ms for the copy; writing takes "
        f"{1000 * statistics.median(saving.written[1:]):.0f} ms beside it. A checkpoint costs "
        f"{1000 * statistics.median(costs):.0f} ms: one every {options.every} steps "
        f"{statistics.median(shares):+.2f} % of the run [{min(shares):+.2f}, {max(shares):+.2f}]; "
        f"the wait alone {100 * waited / whole:.2f} %"
    )


if __name__ == "__main__":
    main()

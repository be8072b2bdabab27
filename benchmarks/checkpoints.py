"""What a checkpoint costs a training run, in one run.

One compiled model trains the same number of steps in turns, with a checkpoint after the fifth and
with none. The difference is the cost: the copy of the state, for which training waits, and whatever
the thread that writes takes from the steps that go on meanwhile.

    KERAS_BACKEND=jax python benchmarks/checkpoints.py           # or --width=384 --depth=12
"""

import os
import statistics
import tempfile

import keras
import timing

from keras_cdiff import DiffusionModel
from keras_cdiff.training import CheckpointFolder, snapshot
from keras_cdiff.training.checkpoint_callback import BackgroundWriter


class OneCheckpoint(keras.callbacks.Callback):
    """Saves after the fifth step, as `CheckpointCallback` does, and times the parts of it."""

    def __init__(self, path):
        super().__init__()
        self.folder = CheckpointFolder(path, keep_last=1)
        self.writer = BackgroundWriter(self)
        self.waited, self.written = [], []

    def save(self, *arguments):
        self.written.append(timing.seconds_of(self.folder.save, *arguments))

    def on_train_batch_end(self, batch, logs=None):
        if batch == 5:
            step = len(self.waited)
            self.waited.append(
                timing.seconds_of(lambda: self.writer.save(step, snapshot(self.model), {}))
            )


def main():
    options = timing.read_flags(
        __doc__,
        rounds=7,
        steps=(28, "of each call of fit, after the first two"),
        every=(500, "steps of which the share is taken"),
        width=128,
        depth=6,
        folder=(None, "where the checkpoints are written; default: temporary"),
    )
    model = DiffusionModel.from_preset("dit_emoji16", width=options.width, depth=options.depth)
    model.compile()
    model.optimizer.build(model.trainable_variables)
    batch = timing.random_batch(32, (16, 16, 3), 8)

    def seconds(*callbacks):
        return sum(timing.step_seconds(model, batch, options.steps, callbacks))

    with tempfile.TemporaryDirectory(dir=options.folder) as path:
        saving = OneCheckpoint(path)
        seconds(saving)
        plain, saved = [], []
        for _ in range(options.rounds):
            plain.append(seconds())
            saved.append(seconds(saving))
            saving.writer.wait()
        (step,) = saving.folder.steps()
        megabytes = os.path.getsize(saving.folder.file(step)) / 1e6
    step_seconds = statistics.median(plain) / options.steps
    costs = [b - a for a, b in zip(plain, saved, strict=True)]
    whole = options.every * step_seconds
    waited = statistics.median(saving.waited[1:])
    print(
        f"{keras.backend.backend()}: {model.backbone.count_params():,} parameters, "
        f"{1000 * step_seconds:.0f} ms a step, {megabytes:.0f} MB a checkpoint. Training waits "
        f"{1000 * waited:.0f} ms for the copy; writing takes "
        f"{1000 * statistics.median(saving.written[1:]):.0f} ms beside it. A checkpoint costs "
        f"{1000 * statistics.median(costs):.0f} ms: one every {options.every} steps "
        f"{timing.ratio(costs, [whole / 100] * len(costs))} % of the run; "
        f"the wait alone {100 * waited / whole:.2f} %"
    )


if __name__ == "__main__":
    main()

"""What the curriculum's callback costs a training step, as a share of the step, in one run.

One compiled model trains in turns with the callback and without it. The callback looks at every
iteration's loss and changes no stage, which is what nearly all of its calls do.

    KERAS_BACKEND=jax python benchmarks/curriculum_overhead.py
"""

import argparse
import statistics
import time

import keras
import numpy as np

from keras_cdiff import CurriculumCallback, DiffusionModel
from keras_cdiff.curriculum import PatiencePacing, quantile_clusters


class Clock(keras.callbacks.Callback):
    """Seconds of training after the first, slower steps of a call to fit."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.began = time.perf_counter()
        self.steps, self.seconds = batch - 1, time.perf_counter() - getattr(self, "began", 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    model = DiffusionModel.from_preset("dit_emoji16")
    model.compile()
    curriculum = CurriculumCallback(
        quantile_clusters(model.objective, 5), PatiencePacing(10**6), verbose=0
    )
    model.track_clusters(curriculum.clusters.edges)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (32, 16, 16, 3)).astype("float32")
    labels = rng.integers(0, 8, 32).astype("int32")

    def step_time(callbacks):
        clock = Clock()
        data = ((images, labels) for _ in range(options.steps))
        model.fit(
            data,
            steps_per_epoch=options.steps,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, clock],
        )
        return clock.seconds / clock.steps

    step_time([])
    plain, staged = [], []
    for _ in range(options.rounds):
        plain.append(step_time([]))
        staged.append(step_time([curriculum]))
    shares = [b / a - 1 for a, b in zip(plain, staged, strict=True)]

    # The call on its own, free of the step's noise.
    logs = {"batch_loss": 1.0, "loss": 1.0}
    curriculum.on_epoch_begin(0)
    began = time.perf_counter()
    for batch in range(10_000):
        curriculum.on_train_batch_end(batch, logs)
    call = (time.perf_counter() - began) / 10_000
    step = statistics.median(plain)
    print(
        f"{keras.backend.backend()}: {1000 * step:.1f} ms a step without the callback, "
        f"{1000 * statistics.median(staged):.1f} ms with it; difference round by round "
        f"{100 * statistics.median(shares):+.2f} % [{100 * min(shares):+.2f}, "
        f"{100 * max(shares):+.2f}]; the call itself takes {1e6 * call:.1f} microseconds, "
        f"{100 * call / step:.4f} % of a step"
    )


if __name__ == "__main__":
    main()

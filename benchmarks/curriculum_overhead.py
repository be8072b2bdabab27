"""What the curriculum's callback costs a training step, as a share of the step, in one run.

One compiled model trains in turns with the callback and without it. The callback looks at every
iteration's loss and changes no stage, which is what nearly all of its calls do.

    KERAS_BACKEND=jax python benchmarks/curriculum_overhead.py
"""

import statistics

import keras
import timing

from keras_cdiff import CurriculumCallback, DiffusionModel
from keras_cdiff.curriculum import PatiencePacing, quantile_clusters

CALLS = 10_000


def main():
    options = timing.read_flags(__doc__, rounds=9, steps=28)
    model = DiffusionModel.from_preset("dit_emoji16")
    model.compile()
    curriculum = CurriculumCallback(
        quantile_clusters(model.objective, 5), PatiencePacing(10**6), verbose=0
    )
    model.track_clusters(curriculum.clusters.edges)
    batch = timing.random_batch(32, (16, 16, 3), 8)

    def step_time(*callbacks):
        seconds = timing.step_seconds(model, batch, options.steps, callbacks, wait=False)
        return statistics.mean(seconds)

    step_time()
    plain, staged = [], []
    for _ in range(options.rounds):
        plain.append(step_time())
        staged.append(step_time(curriculum))
    differences = [b - a for a, b in zip(plain, staged, strict=True)]

    # The call on its own, free of the step's noise.
    logs = {"batch_loss": 1.0, "loss": 1.0}
    curriculum.on_epoch_begin(0)
    call = timing.seconds_of(
        lambda: [curriculum.on_train_batch_end(batch, logs) for batch in range(CALLS)]
    )
    step = statistics.median(plain)
    print(
        f"{keras.backend.backend()}: {1000 * step:.1f} ms a step without the callback, "
        f"{1000 * statistics.median(staged):.1f} ms with it; difference round by round "
        f"{timing.ratio(differences, [a / 100 for a in plain])} %; the call itself takes "
        f"{1e6 * call / CALLS:.1f} microseconds, {100 * call / CALLS / step:.4f} % of a step"
    )


if __name__ == "__main__":
    main()

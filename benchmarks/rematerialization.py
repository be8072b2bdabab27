"""Peak memory and seconds of a training step of DiT, with and without rematerialization.

Every measurement has its own process. Memory is what the process needed at its peak, steps and
their compilation included, beyond its peak before the first step; the time is the median of the
steps after the first.

    python benchmarks/rematerialization.py      # or --width=128 --depth=4 --batch_size=8
"""

import os
import statistics

import timing

NUM_CLASSES = 10
SIZES = ("image_size", "channels", "patch_size", "width", "depth", "num_heads")


def work(options):
    """Returns the bytes, the seconds of each step but the first, and the parameters of one run."""
    import keras

    from keras_cdiff import backbones

    keras.utils.set_random_seed(0)
    network = backbones.DiT(
        **{name: getattr(options, name) for name in SIZES},
        num_classes=NUM_CLASSES,
        dtype=options.dtype_policy,
        rematerialize=options.worker == "yes",
    )
    model = timing.ddpm_model(network)
    shape = (options.image_size, options.image_size, options.channels)
    batch = timing.random_batch(options.batch_size, shape, NUM_CLASSES)
    # The optimizer's state is the same with and without.
    model.optimizer.build(model.trainable_variables)
    before = timing.peak_bytes()

    def step():
        float(model.train_on_batch(batch, return_dict=True)["batch_loss"])

    seconds = [timing.seconds_of(step) for _ in range(1 + options.steps)]
    return timing.peak_bytes() - before, seconds[1:], network.count_params()


def compare(options):
    """Yields the rows of each backend: without rematerialization, and with it."""
    for backend in options.backends:
        results = {w: timing.measure(w, KERAS_BACKEND=backend) for w in ("no", "yes")}
        plain_bytes, plain_seconds, parameters = results["no"]
        if backend == options.backends[0]:
            print(
                f"DiT of {parameters / 1e6:,.1f} M parameters, width "
                f"{options.width}, depth {options.depth}; {options.image_size} x "
                f"{options.image_size} x {options.channels}, patch {options.patch_size}, batch "
                f"{options.batch_size}, {options.dtype_policy}, {os.cpu_count()} cores\n"
            )
        for which, (size, seconds, _) in results.items():
            median, plain = statistics.median(seconds), statistics.median(plain_seconds)
            cells = [backend, which, f"{size / 1e6:,.0f}", f"{size / plain_bytes:.2f}"]
            yield [*cells, f"{1000 * median:,.0f}", f"{median / plain:.2f}"]


def main():
    options = timing.read_flags(
        __doc__,
        backends=timing.BACKENDS,
        image_size=32,
        channels=4,
        patch_size=2,
        width=384,
        depth=12,
        num_heads=6,
        batch_size=32,
        dtype_policy="float32",
        steps=(3, "measured, after the first"),
    )
    if options.worker:
        timing.tell(work(options))
        return
    head = ("backend", "rematerialize", "MB", "times the MB", "ms a step", "times the ms")
    timing.print_table(head, compare(options))


if __name__ == "__main__":
    main()

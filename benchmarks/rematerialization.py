"""Peak memory and seconds of a training step of DiT, with and without rematerialization.

Every measurement has its own process. Memory is what the process needed at its peak, steps and
their compilation included, beyond its peak before the first step; the time is the median of the
steps after the first.

    python benchmarks/rematerialization.py      # or --width=128 --depth=4 --batch_size=8
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")
NUM_CLASSES = 10
SIZES = ("image_size", "channels", "patch_size", "width", "depth", "num_heads")


def peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(options):
    """Prints the bytes, and the seconds of each step but the first, of one run as JSON."""
    import keras

    from keras_cdiff import DiffusionModel, backbones, objectives, parameterizations, schedules

    keras.utils.set_random_seed(0)
    network = backbones.DiT(
        **{name: getattr(options, name) for name in SIZES},
        num_classes=NUM_CLASSES,
        dtype=options.dtype_policy,
        rematerialize=options.worker == "with",
    )
    model = DiffusionModel(
        network,
        schedules.LinearBeta(),
        parameterizations.Epsilon(),
        objectives.UniformTimesteps(),
    )
    model.compile(keras.optimizers.AdamW(1e-4, weight_decay=0.0))
    rng = np.random.default_rng(0)
    shape = (options.batch_size, options.image_size, options.image_size, options.channels)
    images = rng.normal(size=shape).astype("float32")
    labels = rng.integers(0, NUM_CLASSES, options.batch_size).astype("int32")
    # The optimizer's state is the same with and without.
    model.optimizer.build(model.trainable_variables)
    before = peak_bytes()
    seconds = []
    for _ in range(1 + options.steps):
        began = time.perf_counter()
        float(model.train_on_batch(images, labels, return_dict=True)["batch_loss"])
        seconds.append(time.perf_counter() - began)
    answer = {"bytes": peak_bytes() - before, "seconds": seconds[1:]}
    print(json.dumps({**answer, "parameters": network.count_params()}))


def measure(backend, which):
    """Returns what `work` prints, from a process of its own."""
    answer = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], f"--worker={which}"],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise SystemExit(f"{answer.stderr[-2000:]}\n{backend} failed")
    return json.loads(answer.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--patch_size", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--num_heads", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype_policy", default="float32")
    parser.add_argument("--steps", type=int, default=3, help="measured, after the first")
    parser.add_argument("--worker", choices=("with", "without"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    backends = options.backends.split(",")
    if unknown := sorted(set(backends) - set(BACKENDS)):
        parser.error(f"--backends must be among {', '.join(BACKENDS)}. Received: {unknown}")
    for number, backend in enumerate(backends):
        results = {which: measure(backend, which) for which in ("without", "with")}
        if number == 0:
            print(
                f"DiT of {results['with']['parameters'] / 1e6:,.1f} M parameters, width "
                f"{options.width}, depth {options.depth}; {options.image_size} x "
                f"{options.image_size} x {options.channels}, patch {options.patch_size}, batch "
                f"{options.batch_size}, {options.dtype_policy}, {os.cpu_count()} cores\n"
            )
            print("| backend | rematerialize | MB | times the MB | ms a step | times the ms |")
            print("|---|---|---:|---:|---:|---:|")
        plain = results["without"]
        for which, result in results.items():
            milliseconds, base = (1000 * statistics.median(r["seconds"]) for r in (result, plain))
            cells = [backend, {"with": "yes", "without": "no"}[which]]
            cells += [f"{result['bytes'] / 1e6:,.0f}", f"{result['bytes'] / plain['bytes']:.2f}"]
            cells += [f"{milliseconds:,.0f}", f"{milliseconds / base:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

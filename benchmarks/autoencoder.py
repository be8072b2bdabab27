"""Images a second that autoencoders encode and decode, on each backend.

Stable Diffusion's, at 256 x 256, and the small one, at 64 x 64, with drawn weights, which cost as
much as trained ones. Each backend has its own process; a figure is the median of the rounds after
the first, which compiles.

    pip install -e ".[latent,jax,torch]"
    python benchmarks/autoencoder.py      # or --backends=jax --rounds=5 --batch_size=4
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")


def autoencoders(options):
    """Yields name, autoencoder, side of the images and batch size."""
    from keras_cdiff.autoencoders import Autoencoder, kl_networks, open_autoencoder

    small = Autoencoder(*kl_networks(), scale=1.0, name="kl")
    yield "small", small, options.small_size, options.small_batch_size
    if not options.small_only:
        large = open_autoencoder("stable_diffusion:random")
        yield "Stable Diffusion", large, options.image_size, options.batch_size


def images_a_second(function, batch, rounds):
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        function(batch)
        seconds.append(time.perf_counter() - began)
    return len(batch) / statistics.median(seconds[1:])


def work(options):
    """Prints a JSON list a figure: autoencoder, side, batch size, direction, images a second."""
    rng = np.random.default_rng(0)
    for name, autoencoder, side, batch_size in autoencoders(options):
        images = rng.uniform(-1, 1, (batch_size, side, side, 3)).astype("float32")
        latents = autoencoder.moments(images)[..., : autoencoder.channels]
        tasks = (("encode", autoencoder.moments, images), ("decode", autoencoder.decode, latents))
        for direction, function, batch in tasks:
            speed = images_a_second(function, batch, options.rounds)
            print("figure", json.dumps([name, side, batch_size, direction, speed]), flush=True)


def measure(backend):
    """Returns what `work` prints, from a process of its own."""
    answer = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--worker"],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise SystemExit(f"{answer.stderr[-2000:]}\n{backend} failed")
    lines = answer.stdout.splitlines()
    return [json.loads(line[7:]) for line in lines if line.startswith("figure ")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--image_size", type=int, default=256, help="of Stable Diffusion's")
    parser.add_argument("--batch_size", type=int, default=1, help="of Stable Diffusion's")
    parser.add_argument("--small_size", type=int, default=64, help="image size of the small one")
    parser.add_argument("--small_batch_size", type=int, default=16)
    parser.add_argument("--small_only", action="store_true", help="leave Stable Diffusion's out")
    parser.add_argument("--rounds", type=int, default=3, help="measured, after the first")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    backends = options.backends.split(",")
    if unknown := sorted(set(backends) - set(BACKENDS)):
        parser.error(f"--backends must be among {', '.join(BACKENDS)}. Received: {unknown}")
    print(f"{os.cpu_count()} cores, median of {options.rounds} rounds\n")
    print("| autoencoder | size | batch | backend | direction | images a second |")
    print("|---|---:|---:|---|---|---:|")
    for backend in backends:
        for name, side, batch_size, direction, speed in measure(backend):
            cells = [name, f"{side} x {side}", str(batch_size), backend, direction, f"{speed:.3g}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""How long the relative entropies of a large data set take, and how much memory.

    python benchmarks/relative_entropy.py --data=cifar10.npz

The file holds `images` uint8 (N, H, W, C), of which the first 50,000 are used. They lie on disk as
float32 and are read in blocks. Prints the time of 40 levels at 256 draws along two schedules, the
memory that it took beyond what the process had before, and every number.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_cdiff import schedules, study


def peak_memory():
    """In MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_floats(path, data, num_images):
    """Writes images in [-1, 1], and leaves none of them in memory."""
    with np.load(data, allow_pickle=False) as file:
        images = file["images"][:num_images]
    floats = np.lib.format.open_memmap(path, "w+", np.float32, images.shape)
    for start in range(0, len(images), 1000):
        floats[start : start + 1000] = images[start : start + 1000] / np.float32(127.5) - 1
    floats.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the .npz file")
    parser.add_argument("--num_images", type=int, default=50_000)
    parser.add_argument("--num_levels", type=int, default=40)
    parser.add_argument("--num_draws", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        write_floats(path, options.data, options.num_images)
        images = np.load(path, mmap_mode="r")
        for schedule in (schedules.LinearBeta(), schedules.EDM()):
            levels = study.spread_levels(schedule, options.num_levels)
            if schedule.coordinate == "timestep":  # so many different ones
                levels = np.unique(np.geomspace(1, 999, 2 * options.num_levels).astype(int))
                places = np.linspace(0, len(levels) - 1, options.num_levels).round().astype(int)
                levels = levels[places]
            began = time.perf_counter()
            estimate, error = study.relative_entropy(images, schedule, levels, options.num_draws)
            print(
                f"{keras.backend.backend()}, {type(schedule).__name__}: {len(images):,} images, "
                f"{len(levels)} levels, {options.num_draws} draws: "
                f"{time.perf_counter() - began:.1f} s; peak memory {peak_memory():.0f} MiB"
            )
            for level, nats, standard_error in zip(levels, estimate, error, strict=True):
                print(f"  {level:10.4g}  {nats:.6g} +- {standard_error:.1g} nats")


if __name__ == "__main__":
    main()

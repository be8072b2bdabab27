"""How long the relative entropies of a large data set take, and how much memory.

    python benchmarks/relative_entropy.py --data=cifar10.npz

The file holds `images` uint8 (N, H, W, C), of which the first 50,000 are used. They lie on disk as
float32 and are read in blocks. Prints the time of 40 levels at 256 draws along two schedules, the
memory that it took beyond what the process had before, and every number.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
import timing

from keras_cdiff import schedules, study


def write_floats(path, data, num_images):
    """Writes images in [-1, 1], and leaves none of them in memory."""
    with np.load(data, allow_pickle=False) as file:
        images = file["images"][:num_images]
    floats = np.lib.format.open_memmap(path, "w+", np.float32, images.shape)
    for start in range(0, len(images), 1000):
        floats[start : start + 1000] = images[start : start + 1000] / np.float32(127.5) - 1
    floats.flush()


def main():
    options = timing.read_flags(
        __doc__,
        data=("cifar10.npz", "the .npz file"),
        num_images=50_000,
        num_levels=40,
        num_draws=256,
    )
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
            results = []
            seconds = timing.seconds_of(
                lambda along=schedule, at=levels, found=results: found.extend(
                    study.relative_entropy(images, along, at, options.num_draws)
                )
            )
            print(
                f"{keras.backend.backend()}, {type(schedule).__name__}: {len(images):,} images, "
                f"{len(levels)} levels, {options.num_draws} draws: {seconds:.1f} s; "
                f"peak memory {timing.peak_bytes() / 2**20:.0f} MiB"
            )
            for level, nats, standard_error in zip(levels, *results, strict=True):
                print(f"  {level:10.4g}  {nats:.6g} +- {standard_error:.1g} nats")


if __name__ == "__main__":
    main()

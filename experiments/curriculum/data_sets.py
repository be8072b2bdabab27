"""The data sets of the runs: training images and images held out, each as one .npz file.

    python experiments/curriculum/data_sets.py --output=evidence/data  # by TFDS, and the emoji
    python experiments/curriculum/data_sets.py --output=evidence/data --arrays=DIR

With --arrays, fashion_mnist.npz and cifar10.npz (images, labels and the number of training images,
num_train, which come first) are read from a folder instead of being downloaded.
"""

import argparse
from pathlib import Path

import numpy as np

from keras_cdiff.common.files import write_whole
from keras_cdiff.data import open_source

NAMES = ("emoji", "fashion_mnist", "cifar10")
HELD_OUT = 0.1  # of the emoji, which have no test images of their own


def path_of(folder: Path, name: str, part: str) -> Path:
    """Returns where the "train" or "held_out" images of a data set lie."""
    return Path(folder) / f"{name}_{part}.npz"


def prepare(name: str, folder: Path, arrays: Path | None = None) -> None:
    """Writes both files of a data set, if they are missing."""
    files = {part: path_of(folder, name, part) for part in ("train", "held_out")}
    if all(file.is_file() for file in files.values()):
        return
    for part, (images, labels) in _read(name, arrays).items():
        images = images if images.ndim == 4 else images[..., None]
        write_whole(
            files[part],
            lambda path, images=images, labels=labels: np.savez(
                path, images=images, labels=labels.astype(np.int32)
            ),
        )
        print(f"wrote {files[part]}: {len(images):,} images {images.shape[1:]}", flush=True)


def _read(name: str, arrays: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if name == "emoji":
        images, labels = _arrays(open_source("emoji"))
        held_out = np.zeros(len(images), bool)
        order = np.random.default_rng(0).permutation(len(images))
        held_out[order[: round(HELD_OUT * len(images))]] = True
    elif arrays is None:
        parts = {"train": "train", "held_out": "test"}
        return {part: _arrays(open_source(f"tfds:{name}:{s}")) for part, s in parts.items()}
    else:
        with np.load(Path(arrays) / f"{name}.npz", allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
            held_out = np.arange(len(images)) >= int(file["num_train"])
    return {
        "train": (images[~held_out], labels[~held_out]),
        "held_out": (images[held_out], labels[held_out]),
    }


def _arrays(source: object) -> tuple[np.ndarray, np.ndarray]:
    examples = [source[index] for index in range(len(source))]
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the files")
    parser.add_argument("--arrays", type=Path, help="folder of fashion_mnist.npz and cifar10.npz")
    parser.add_argument("--names", default=",".join(NAMES), help="which, by commas")
    options = parser.parse_args()
    for name in options.names.split(","):
        prepare(name, options.output, options.arrays)


if __name__ == "__main__":
    main()

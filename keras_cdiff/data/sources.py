"""Random-access sources of images, named by one string such as `emoji` or `folder:PATH`."""

import os
from pathlib import Path

import numpy as np

from keras_cdiff.data.batch_file import read_npz
from keras_cdiff.data.image_folder import read_image_folder
from keras_cdiff.data.latents import LatentSource
from keras_cdiff.data.source import ArraySource, Source
from keras_cdiff.data.tfds_source import TfdsSource


def open_source(spec: str = "emoji", data_dir: str | os.PathLike | None = None) -> Source:
    """Opens and checks the source of images that a string names.

    `emoji`: the embedded set, 1,636 RGB emoji of 32 x 32 in 8 classes, each with its name.
    `npz:PATH`: arrays `images` (or `arr_0`) and, if wanted, `labels` (or `arr_1`), `captions`,
    `class_names`; see `ArraySource`. Images that are not compressed stay on disk.
    `folder:PATH`: one subfolder per class, labelled in the order of their names; or images
    without labels; or images named in a metadata.csv with columns file and caption, a row for each
    caption.
    `tfds:NAME[/CONFIG][:SPLIT]`: a TensorFlow Datasets build in array_record format, already
    prepared; SPLIT is "train" unless given. Uses its feature image and, if present, label, and
    captions (each with a text) or caption.

    `latents:PATH`: a folder of latents that apps/encode.py made of images; see `LatentSource`.

    Args:
        spec: The source, in one of the forms above.
        data_dir: For `tfds:`, the folder of prepared data sets. By default the environment
            variable TFDS_DATA_DIR, then the TFDS default.

    Returns:
        The source. `.name` is `spec`.

    Raises:
        ValueError: If the source cannot be read whole, or is not what it should be.
    """
    if spec == "emoji":
        return _open_npz(spec, str(Path(__file__).parent / "emoji32.npz"))
    scheme, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if scheme not in ("npz", "folder", "tfds", "latents") or not rest:
        raise ValueError(
            "A source is emoji, npz:PATH, folder:PATH, tfds:NAME[/CONFIG][:SPLIT] or latents:PATH. "
            f"Received: source={spec!r}"
        )
    if scheme == "latents":
        return LatentSource(rest, spec)
    if scheme == "npz":
        return _open_npz(spec, rest)
    if scheme == "folder":
        return Source(spec, *read_image_folder(rest))
    name, _, split = rest.partition(":")
    return TfdsSource(spec, name, split or "train", data_dir or os.environ.get("TFDS_DATA_DIR"))


def _open_npz(name: str, path: str) -> ArraySource:
    wanted = ("images", "arr_0", "labels", "arr_1", "captions", "class_names")
    arrays, found = read_npz(path, wanted, mapped=("images", "arr_0"))
    if "images" not in arrays and "arr_0" not in arrays:
        raise ValueError(
            "The file must hold an array `images` (or `arr_0`); write it with "
            f"np.savez(path, images=...). It holds {found}. Received: source={name!r}"
        )
    images = arrays.get("images", arrays.get("arr_0"))
    class_names = arrays.get("class_names", np.array([], dtype=str))
    if class_names.dtype.kind != "U" or class_names.ndim != 1:
        raise ValueError(
            f"The class names of {name!r} must be strings in an array of rank 1. Received: "
            f"class_names of shape {class_names.shape}, dtype {class_names.dtype}"
        )
    labels = arrays.get("labels", arrays.get("arr_1"))
    return ArraySource(name, images, labels, arrays.get("captions"), class_names)

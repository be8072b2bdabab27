"""Snapshots of power-function averages during training, and averages of other widths from them.

A folder of snapshots holds one file a moment and width, ema_00002000_0.1.npz: "iteration", "width"
and the averaged weights, float32, in the order of the network, as "weights/0003/stem/kernel".
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.callbacks import StepCallback
from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import write_whole
from keras_cdiff.ema import PowerDecay, reconstruct
from keras_cdiff.model.diffusion_model import DiffusionModel

_PREFIX = "weights/"


class EMASnapshots(StepCallback):
    """Stores every power-function average now and then, and at the end of training.

    Args:
        folder: where the files of one training go; it is made at the beginning. A training that
            goes on may use it again, listing this after a callback that restores the model.
        every: training steps between two snapshots, >= 1; some tens in all suffice.

    Raises:
        ValueError: at the beginning of training, if the model keeps no average of a `PowerDecay`,
            or the folder holds snapshots of later steps than the model has taken.

    Example:

    ```python
    model = DiffusionModel(..., ema=[PowerDecay(0.05), PowerDecay(0.1)])
    model.fit(images, callbacks=[EMASnapshots("snapshots", every=1000)])
    reconstruct_average(model, "snapshots", width=0.14)
    ```
    """

    def __init__(self, folder: str | os.PathLike, every: int):
        super().__init__()
        self.folder = Path(folder)
        self.every = check_integer("every", every)

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        model = self.model
        if not any(isinstance(decay, PowerDecay) for decay, _ in model.averages()):
            raise ValueError(
                "Snapshots are of power-function averages: build the model with ema=PowerDecay(), "
                f"or with several. Received: ema={model.ema!r}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stored = self.step
        self._check_folder()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        if self.step // self.every > self._stored // self.every:
            self._store()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.step > self._stored:
            self._store()

    def _check_folder(self) -> None:
        """Raises if the folder holds snapshots that this training has yet to reach."""
        iterations = {path.name: StoredSnapshot(path).iteration for path in _files(self.folder)}
        later = [name for name, iteration in iterations.items() if iteration > self.step]
        if later:
            raise ValueError(
                f"A folder holds the snapshots of one training, but {len(later)} in this one, from "
                f"{later[0]} on, are of later steps than the model's {self.step}: give another "
                f"folder, or remove these files. Received: folder={str(self.folder)!r}"
            )

    def _store(self) -> None:
        model = self.model
        self._stored = iteration = self.step
        for decay, network in model.averages():
            if isinstance(decay, PowerDecay):
                arrays = {_PREFIX + k: ops.convert_to_numpy(w) for k, w in _named(network).items()}
                arrays |= {"iteration": np.int64(iteration), "width": np.float64(decay.width)}
                path = self.folder / f"ema_{iteration:08d}_{decay.width!r}.npz"
                write_whole(path, lambda path, arrays=arrays: np.savez(path, **arrays))


class StoredSnapshot:
    """A snapshot on disk, whose weights are read at each use.

    Args:
        path: a file that `EMASnapshots` wrote.

    Raises:
        ValueError: if it is none.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.iteration, self.width = self._read(
            lambda file: (int(file["iteration"]), float(file["width"]))
        )

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The averaged weights by name."""

        def arrays(file: Mapping) -> dict[str, np.ndarray]:
            names = [name for name in file if name.startswith(_PREFIX)]
            return {name.removeprefix(_PREFIX): file[name] for name in names}

        return self._read(arrays)

    def _read(self, get: Callable) -> object:
        # What NumPy raises for files that are cut short or of another kind is of many classes.
        try:
            with open(self.path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                return get(file)
        except Exception as error:
            raise ValueError(
                "A snapshot must be a whole file that EMASnapshots wrote: remove it from its "
                f"folder, or restore it. Received: {str(self.path)!r} ({error})"
            ) from error


def read_snapshots(folder: str | os.PathLike) -> list[StoredSnapshot]:
    """Returns the snapshots in a folder, in the order of training.

    Raises:
        ValueError: if there are none, or one is damaged.
    """
    snapshots = [StoredSnapshot(path) for path in _files(folder)]
    if not snapshots:
        raise ValueError(
            "The folder must hold snapshots, ema_*.npz, that EMASnapshots wrote. "
            f"Received: folder={str(folder)!r}"
        )
    return sorted(snapshots, key=lambda snapshot: (snapshot.iteration, snapshot.width))


def reconstruct_average(
    model: DiffusionModel,
    folder: str | os.PathLike,
    width: float,
    iteration: int | None = None,
) -> None:
    """Puts the average of another width into `model.ema_backbone`, made from stored snapshots.

    Training that goes on from there would go on from that average.

    Args:
        model: a model of the same network that keeps an average.
        folder: where `EMASnapshots` wrote during one training.
        width: relative width wanted, in (0, 1 / sqrt(12)].
        iteration: moment of training wanted, None for that of the last snapshot; see
            `keras_cdiff.ema.reconstruct`.

    Raises:
        ValueError: if the snapshots do not fit the model or each other, or a number is out of
            range.
    """
    if model.ema_backbone is None:
        raise ValueError(
            "This model keeps no average of its weights: build it with `ema`. Received: ema=None"
        )
    weights = reconstruct(read_snapshots(folder), width, iteration)
    network = _named(model.ema_backbone)
    expected = {name: tuple(weight.shape) for name, weight in network.items()}
    received = {name: value.shape for name, value in weights.items()}
    if expected != received:
        differing = sorted(set(expected.items()) ^ set(received.items()))
        raise ValueError(
            "The snapshots must be of the model's own network, with the same names and shapes of "
            f"weights. Received: folder={str(folder)!r}, first difference at {differing[0]}"
        )
    for name, weight in network.items():
        weight.assign(weights[name])


def _files(folder: str | os.PathLike) -> list[Path]:
    return sorted(Path(folder).glob("ema_*.npz"))


def _named(network: keras.Model) -> dict[str, keras.Variable]:
    """The weights by place and path, without the network's name and the numbers that Keras gives to
    layers of one name, which differ from process to process.
    """
    named = {}
    for place, weight in enumerate(network.weights):
        path = weight.path.removeprefix(network.name + "/")
        path = "/".join(re.sub(r"_\d+$", "", part) for part in path.split("/"))
        named[f"{place:04d}/{path}"] = weight
    return named

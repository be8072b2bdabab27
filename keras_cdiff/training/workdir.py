"""The folder of a training run: what lies where, and that it belongs to one configuration.

config.json             the resolved configuration
log.jsonl               one record a log interval
tensorboard/            TensorBoard events
samples/                grids of samples, samples/step_000600.png
weights/raw.weights.h5  the network's weights
weights/ema.weights.h5  their average
"""

import json
import os
from pathlib import Path

import keras

from keras_cdiff.diffusion_model import DiffusionModel


class Workdir:
    """The folder of one training run.

    Args:
        path: the folder; it is made when the run is claimed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.log_file = self.path / "log.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples"
        self.weights = self.path / "weights"

    def claim(self, config: dict) -> None:
        """Makes the folder that of `config`, before anything is trained.

        Raises:
            ValueError: if it belongs to another configuration, or holds trained weights.
        """
        if self.config_file.exists():
            differences = _differences(self.config(), config)
            if differences:
                raise ValueError(
                    "The workdir belongs to another configuration: choose another --workdir, or "
                    "the "
                    f"same settings. Received: workdir={str(self.path)!r}, where\n  "
                    + "\n  ".join(differences)
                )
        elif self.path.exists() and not self.path.is_dir():
            raise ValueError(f"The workdir must be a folder. Received: workdir={str(self.path)!r}")
        if self.weights_file("raw").exists():
            raise ValueError(
                "The workdir holds a trained model: sample from it with apps/sample.py, or train "
                "into "
                f"another --workdir. Received: workdir={str(self.path)!r}"
            )
        for folder in (self.path, self.samples, self.weights):
            folder.mkdir(parents=True, exist_ok=True)
        _replace(
            self.config_file, lambda path: path.write_text(json.dumps(config, indent=2) + "\n")
        )
        # What an interrupted run left is begun anew.
        self.log_file.write_text("")

    def config(self) -> dict:
        """Returns the configuration of the run.

        Raises:
            ValueError: if the folder holds none.
        """
        if not self.config_file.exists():
            raise ValueError(
                "The workdir must be that of a training run, with a config.json in it. "
                f"Received: workdir={str(self.path)!r}"
            )
        return json.loads(self.config_file.read_text())

    def weights_file(self, which: str) -> Path:
        """Returns the path of the "raw" or the "ema" weights."""
        return self.weights / f"{which}.weights.h5"

    def save_weights(self, model: DiffusionModel) -> None:
        """Writes the network's weights and their average, each under its own name."""
        networks = {"raw": model.backbone, "ema": model.ema_backbone}
        for which, network in networks.items():
            if network is not None:
                _replace(self.weights_file(which), network.save_weights)

    def load_weights(self, model: DiffusionModel) -> None:
        """Reads the weights that `save_weights` wrote."""
        for which, network in {"raw": model.backbone, "ema": model.ema_backbone}.items():
            if network is not None:
                load_network(network, self.weights_file(which))


def load_network(network: keras.Model, path: Path) -> None:
    """Loads a weights file into a network.

    Raises:
        ValueError: if the file is missing or holds the weights of another network.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no such weights file. Received: weights={str(path)!r}")
    try:
        network.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            "The weights file must hold this preset's network, with the same image size and number "
            f"of classes. Received: weights={str(path)!r} ({error})"
        ) from error


def _replace(path: Path, write: object) -> None:
    """Writes under a temporary name first, so that `path` is never half written."""
    temporary = path.with_name("writing-" + path.name)
    write(temporary)
    os.replace(temporary, path)


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """One line for each setting that differs."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key} was {a!r} and is now {b!r}")
    return lines

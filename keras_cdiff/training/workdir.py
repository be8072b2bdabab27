"""The folder of a training run: what lies where, and that it belongs to one configuration.

config.json             the resolved configuration
lock                    keeps a second process out
checkpoints/            what the run goes on from, checkpoints/step_00000500.zip
log.jsonl               one record a log interval
evaluations.jsonl       one record an evaluation of samples, if there are any
autoencoder/            what decodes samples, if they are latents of one that was trained here
text/                   the captions' embeddings, where they cannot be kept beside the data
features/               the training data's features, if samples are evaluated
validation.jsonl        one record a measurement of the validation loss, if there are any
tensorboard/            TensorBoard events
samples/                grids of samples, samples/step_000600.png
weights/raw.weights.h5  the network's weights
weights/ema.weights.h5  their average
weights/step.json       the training step that they are of, and the fingerprints of their encoders

The weights are written when the run is finished, their step last. A finished run that is trained
further keeps them until it is finished again.
"""

import errno
import io
import json
import math
import os
import re
import shutil
from pathlib import Path

import keras

from keras_cdiff.autoencoders import Autoencoder
from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import FolderLock, write_whole
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.training.configuration import differences, read


class Workdir:
    """The folder of one training run.

    Args:
        path: the folder; it is made when the run is claimed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.log_file = self.path / "log.jsonl"
        self.evaluation_file = self.path / "evaluations.jsonl"
        self.validation_file = self.path / "validation.jsonl"
        self.autoencoder = self.path / "autoencoder"
        self.features = self.path / "features"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples"
        self.weights = self.path / "weights"
        self.weights_step_file = self.weights / "step.json"

    def check(self, config: dict) -> None:
        """Checks that a run of `config` may begin or go on in the folder, and changes nothing.

        Raises:
            ValueError: if it belongs to another configuration, holds a finished run of no fewer
                steps, or holds files of another origin where those of the run would go.
        """
        received = f"Received: workdir={str(self.path)!r}"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"The workdir must be a folder. {received}")
        if not self.config_file.exists():
            for part in (*self._logs(), *self._folders()):
                if part.exists():
                    raise ValueError(
                        f"The workdir holds {part.name} but no config.json, so it is not that of a "
                        f"training run: choose another --workdir. {received}"
                    )
            return
        old = self.config()
        changes = differences(old, json.loads(_to_json(config)))
        if changes:
            raise ValueError(
                "The workdir belongs to another configuration: choose another --workdir, or the "
                f"same settings. {received}, where\n  " + "\n  ".join(changes)
            )
        finished = self.weights_step()
        if finished is not None and config["training"]["steps"] <= finished:
            raise ValueError(
                "The workdir holds a finished run of this configuration: sample from it with "
                "apps/sample.py, train it further with more --steps, or train into another "
                f"--workdir. {received}, with {finished} steps"
            )

    def lock(self) -> FolderLock:
        """Returns the lock that keeps a second process out, a context manager."""
        in_use = (
            "The workdir is in use by {holder}: wait for its end, stop it, or choose another "
            "--workdir."
        )
        return FolderLock(self.path, in_use, "workdir")

    def weights_step(self) -> int | None:
        """Returns the training step that the weights are of; None before the run is finished."""
        if not self.weights_step_file.exists():
            return None
        return json.loads(self.weights_step_file.read_text())["step"]

    def claim(self, config: dict, step: int = 0) -> None:
        """Makes the folder that of `config`, for a run that begins or goes on at a training step.

        What an earlier process has left there of later steps is removed, except for checkpoints.

        Args:
            config: the resolved configuration.
            step: training steps done.

        Raises:
            ValueError: as `check`; or if a log is damaged.
        """
        self.check(config)
        self.path.mkdir(parents=True, exist_ok=True)
        for log in self._logs():
            if step:
                cut_jsonl(log, step)
            else:
                log.unlink(missing_ok=True)
        write_whole(self.config_file, lambda path: path.write_text(_to_json(config)))
        for folder in self._folders():
            folder.mkdir(exist_ok=True)
        self.log_file.touch()
        if step == 0:
            for leftover in self.tensorboard.glob("events.*"):
                leftover.unlink()
        for folder in (self.path, self.samples, self.weights):
            for leftover in folder.glob("writing-*"):  # a killed process was about to rename it
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for grid in self.samples.glob("step_*.png"):
            drawn = re.fullmatch(r"step_(\d+)\.png", grid.name)
            if drawn and int(drawn[1]) > step:
                grid.unlink()

    def config(self) -> dict:
        """Returns the configuration of the run.

        Raises:
            ValueError: if the folder holds none, or that of another version which cannot be read.
        """
        received = f"Received: workdir={str(self.path)!r}"
        if not self.config_file.is_file():
            raise ValueError(
                f"The workdir must be that of a training run, with a config.json in it. {received}"
            )
        try:
            config = json.loads(self.config_file.read_text())
            if not isinstance(config, dict) or "training" not in config:
                raise ValueError("it holds no configuration")
        except ValueError as error:
            raise ValueError(
                f"The workdir's config.json is damaged: {error}. Restore it, from a checkpoint's "
                f"manifest.json if there is one, or choose another --workdir. {received}"
            ) from error
        return read(config)

    def keep_autoencoder(self, autoencoder: Autoencoder) -> None:
        """Copies an autoencoder that was trained here, so that the folder can be moved by itself;
        one that is published is found by its name.
        """
        if autoencoder.kind == "kl" and not self.autoencoder.exists():
            autoencoder.save(self.autoencoder)

    def _logs(self) -> tuple[Path, ...]:
        return self.log_file, self.evaluation_file, self.validation_file

    def _folders(self) -> tuple[Path, ...]:
        return self.checkpoints, self.tensorboard, self.samples, self.weights

    def weights_file(self, which: str) -> Path:
        """Returns the path of the "raw" or the "ema" weights."""
        return self.weights / f"{which}.weights.h5"

    def save_weights(self, model: DiffusionModel) -> None:
        """Writes the network's weights and their average, each under its own name.

        Raises:
            OSError: if the disk is full.
        """
        networks = _networks(model)
        # HDF5 may end the process where a disk is full.
        size = sum(math.prod(w.shape) * 4 for n in networks.values() for w in n.weights)
        if shutil.disk_usage(self.path).free < 1.1 * size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.weights))
        self.weights_step_file.unlink(missing_ok=True)
        for which, network in networks.items():
            write_whole(self.weights_file(which), network.save_weights)
        step = int(keras.ops.convert_to_numpy(model.iteration))
        content = json.dumps({"step": step, "fingerprints": self._fingerprints()})
        write_whole(self.weights_step_file, lambda path: path.write_text(content))

    def _fingerprints(self) -> dict[str, str]:
        """Those of the encoders that the run has."""
        config = self.config() if self.config_file.exists() else {}
        found = {kind: config.get(kind) or {} for kind in ("autoencoder", "text_encoder")}
        return {kind: part["fingerprint"] for kind, part in found.items() if "fingerprint" in part}

    def load_weights(self, model: DiffusionModel) -> None:
        """Reads the weights that `save_weights` wrote.

        Raises:
            ValueError: if the run has not been finished, or its weights do not fit the model.
        """
        step = self.weights_step()
        if step is None:
            raise ValueError(
                "The run in this workdir has not been finished: it has no weights yet. Repeat its "
                "command to train on. "
                f"Received: workdir={str(self.path)!r}"
            )
        for which, network in _networks(model).items():
            load_network(network, self.weights_file(which))
        model.iteration.assign(step)


def load_network(network: keras.Model, path: str | os.PathLike) -> None:
    """Loads a weights file into a network.

    Raises:
        ValueError: if the file is missing or holds the weights of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no such weights file. Received: weights={str(path)!r}")
    try:
        # Keras would not miss the layers of a deeper network's file that find no place.
        stored, expected = _count_arrays(path), len(network.weights)
        if stored != expected:
            raise ValueError(f"it holds {stored} arrays where the network has {expected}")
        network.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            "The weights file must hold this preset's network, with the same image size and number "
            f"of classes. Received: weights={str(path)!r} ({error})"
        ) from error


def _networks(model: DiffusionModel) -> dict[str, keras.Model]:
    """The networks whose weights are kept."""
    average = {} if model.ema_backbone is None else {"ema": model.ema_backbone}
    return {**average, "raw": model.backbone}


def _count_arrays(path: Path) -> int:
    import h5py

    names = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return len(names)


def _to_json(config: dict) -> str:
    return json.dumps(config, indent=2, allow_nan=False) + "\n"


def cut_jsonl(path: str | os.PathLike, step: int) -> None:
    """Removes the records of a log that lie beyond a training step.

    Kept are the records with record["step"] <= step, byte for byte. A last line without an end, as
    a killed process leaves it, goes too unless it is a whole record. A missing file is left so.

    Args:
        path: a file of JSON lines, each an object with an integer "step".
        step: the last training step to keep, 0 or above.

    Raises:
        ValueError: if a line other than a torn last one is damaged; the file is left as it is.
    """
    path = Path(path)
    step = check_integer("step", step, 0)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    kept = []
    for number, line in enumerate(io.BytesIO(content), start=1):
        whole = line if line.endswith(b"\n") else line + b"\n"
        try:
            recorded = _step_of(line)
        except ValueError as error:
            if whole is not line:
                break
            raise ValueError(
                f"Line {number} of the log {path.name} is damaged: {error}. Mend or remove the "
                f"line, then repeat the command. Received: path={str(path)!r}"
            ) from error
        if recorded <= step:
            kept.append(whole)
    mended = b"".join(kept)
    if mended != content:
        write_whole(path, lambda temporary: temporary.write_bytes(mended))


def _step_of(line: bytes) -> int:
    """The step of a record.

    Raises:
        ValueError: if the line is no record.
    """
    try:
        record = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    step = record.get("step") if isinstance(record, dict) else None
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError('it is no object with an integer "step"')
    return step

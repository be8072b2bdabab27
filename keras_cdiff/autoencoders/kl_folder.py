"""The folder of a small autoencoder: a description in JSON, and the weights of both networks."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_cdiff.autoencoders.kl import kl_networks
from keras_cdiff.common.arrays import network_weights
from keras_cdiff.common.files import write_whole_folder

_DESCRIPTION, _WEIGHTS = "autoencoder.json", "weights.npz"
_FORMAT = 1


def write_kl_folder(
    folder: str | os.PathLike, networks: Sequence[keras.Model], description: dict
) -> None:
    """Writes networks of `kl_networks` into a folder, whole or not at all.

    Args:
        folder: missing or empty.
        networks: encoder and decoder.
        description: "factor", "channels", "scale" and "fingerprint".

    Raises:
        ValueError: if something is in the folder, or the networks are others.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            "An autoencoder is saved to a folder that is missing or empty. "
            f"Received: folder={str(folder)!r}"
        )
    sizes = {name: description[name] for name in ("factor", "channels")}
    sizes["width"] = 2 * int(networks[0].weights[0].shape[-1])
    weights = [network_weights(network) for network in networks]
    expected = [_shapes(network) for network in kl_networks(**sizes)]
    if [[values.shape for values in part] for part in weights] != expected:
        raise ValueError(
            "Only networks of kl_networks can be saved. Received: "
            f"{networks[0].name!r} and {networks[1].name!r}, which are others"
        )
    record = {"format": _FORMAT, "kind": "kl", **sizes}
    record |= {name: description[name] for name in ("scale", "fingerprint")}

    def write(path: Path) -> None:
        path.mkdir()
        named = {_name(part, place): values for part, place, values in _numbered(weights)}
        np.savez(path / _WEIGHTS, **named)
        (path / _DESCRIPTION).write_text(json.dumps(record, indent=2) + "\n")

    write_whole_folder(folder, write)


def read_kl_folder(folder: str | os.PathLike) -> tuple[keras.Model, keras.Model, dict]:
    """Returns the encoder and the decoder of a folder, and what the folder says of them.

    Args:
        folder: as `write_kl_folder` wrote it.

    Returns:
        The networks, and a dict with "scale" and "fingerprint", which is yet to be compared.

    Raises:
        ValueError: if the folder holds no autoencoder, or is damaged.
        OSError: if the system does not let it be read.
    """
    folder = Path(folder)
    received = f"Received: folder={str(folder)!r}"
    if not (folder / _DESCRIPTION).is_file():
        raise ValueError(
            f"There is no autoencoder, for want of {_DESCRIPTION}; give a folder that "
            f"Autoencoder.save or apps/encode.py --autoencoder=train made. {received}"
        )
    try:
        record = json.loads((folder / _DESCRIPTION).read_text())
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']} is not known here, but {_FORMAT}")
        networks = kl_networks(**{name: record[name] for name in ("factor", "channels", "width")})
        with np.load(folder / _WEIGHTS, allow_pickle=False) as file:
            for part, place, shape in _numbered(map(_shapes, networks)):
                values = file[_name(part, place)]
                if values.shape != shape:
                    raise ValueError(f"{_name(part, place)} has the shape {values.shape}")
                networks[part].weights[place].assign(values)
        return *networks, {"scale": float(record["scale"]), "fingerprint": record["fingerprint"]}
    except Exception as error:  # a damaged file makes its reader raise almost anything
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # is no fault of the folder's
        raise ValueError(
            "The autoencoder is damaged, or of another version of keras_cdiff; fit or copy it "
            f"again. {received} ({type(error).__name__}: {error})"
        ) from error


def _shapes(network: keras.Model) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in network.weights]


def _numbered(parts: object) -> list[tuple[int, int, object]]:
    """(part, place, item) of all items of encoder (0) and decoder (1)."""
    return [
        (part, place, item) for part, items in enumerate(parts) for place, item in enumerate(items)
    ]


def _name(part: int, place: int) -> str:
    return f"{('encoder', 'decoder')[part]}_{place:03}"

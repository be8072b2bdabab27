"""What a folder of latents was begun for, and whether it is another's, damaged or done."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from keras_cdiff.common.files import write_whole
from keras_cdiff.data.latents import COPY, FORMAT, INDEX
from keras_cdiff.data.source import Source

if TYPE_CHECKING:
    from keras_cdiff.autoencoders import Autoencoder

PROGRESS = "progress.json"

IN_USE = (
    "Latents are being written there by another process: wait until it is done, or choose another "
    "folder."
)

# What makes latents others. Names do not: a folder may be found by another path. Of folder: and
# tfds: sources the digest changes too when their files are moved or touched.
_DECISIVE = ("format", "source_digest", "image_size", "mirrored", "dtype", "shard_size")


def make_request(
    source: Source, autoencoder: "Autoencoder", image_size: int, mirrored: bool, shard_size: int
) -> dict:
    """Returns what is asked for, plain data: the index but for what lies in the files."""
    description = autoencoder.describe()
    if autoencoder.kind == "kl":
        description["name"] = COPY  # where it was before says nothing later
    return {
        "format": FORMAT,
        "autoencoder": description,
        "source": source.name,
        "source_digest": source.digest(),
        "image_size": image_size,
        "latent_size": image_size // autoencoder.factor,
        "channels": autoencoder.channels,
        "count": len(source),
        "mirrored": mirrored,
        "dtype": "float16",
        "shard_size": shard_size,
        "num_classes": source.num_classes,
        "class_names": list(source.class_names),
    }


def find_store(folder: Path, request: dict) -> tuple[dict, list[dict], bool]:
    """Returns what a folder was begun for, its whole shards, and whether all is done; one that was
    begun for nothing yet is begun for the request.

    Args:
        folder: The store; the caller keeps other processes out of it.
        request: As `make_request` makes it.

    Raises:
        ValueError: If it was begun for something else, or is damaged.
    """
    found, finished = _read_begun(folder)
    if found is None:
        found = {**request, "shards": []}
        note(folder / PROGRESS, found)
    differing = [name for name in _DECISIVE if found[name] != request[name]]
    if found["autoencoder"]["fingerprint"] != request["autoencoder"]["fingerprint"]:
        differing.append("autoencoder")
    _refuse(folder, differing, request, found, finished)
    if finished:
        return found, found["shards"], True
    for leftover in folder.glob("writing-*"):  # of a process that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for shard in found["shards"]:
        if not (folder / shard["file"]).is_file():
            raise _damaged(folder, f"{shard['file']} is missing")
    request = {name: value for name, value in found.items() if name != "shards"}
    return request, found["shards"], False


def count_encoded(folder: str | os.PathLike) -> int:
    """Returns how many images lie in the whole files of a store, finished or not.

    Raises:
        ValueError: If the store is damaged.
    """
    found, _ = _read_begun(Path(folder))
    return 0 if found is None else sum(shard["count"] for shard in found["shards"])


def check_begun(
    source: Source,
    image_size: int,
    folder: str | os.PathLike,
    mirrored: bool = True,
    shard_size: int = 1024,
) -> None:
    """Refuses what `encode_source` would refuse of a folder whatever autoencoder of the kind "kl"
    was given: to be asked before one is fitted.

    Args:
        source: The images.
        image_size: The side of the images in pixels.
        folder: The store, which may be missing, empty, begun or finished.
        mirrored: As of `encode_source`.
        shard_size: As of `encode_source`.

    Raises:
        ValueError: If the folder holds latents of another request, or is damaged.
    """
    folder = Path(folder)
    found, finished = _read_begun(folder)
    if found is None:
        return
    request = {
        "source_digest": source.digest(),
        "image_size": image_size,
        "mirrored": bool(mirrored),
        "shard_size": shard_size,
        "autoencoder": "one of the kind kl",
    }
    differing = [n for n in request if n != "autoencoder" and found[n] != request[n]]
    if found["autoencoder"]["name"] != COPY:
        differing.append("autoencoder")
    _refuse(folder, differing, request, found, finished)
    if not (folder / "autoencoder").is_dir():
        raise _damaged(folder, "autoencoder is missing")


def keep_autoencoder(autoencoder: "Autoencoder", folder: Path) -> None:
    """Copies an autoencoder of the kind "kl" into a store, if it is not there yet.

    Raises:
        ValueError: If there is another one, or what is there is damaged.
    """
    copy = folder / "autoencoder"
    if autoencoder.kind != "kl":
        return
    if not copy.exists():
        autoencoder.save(copy)
        return
    try:
        found = json.loads((copy / "autoencoder.json").read_text("utf-8"))["fingerprint"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"autoencoder: {type(error).__name__}: {error}") from error
    if found != autoencoder.fingerprint():
        raise ValueError(
            "The folder holds another autoencoder: choose another folder, or use that one. "
            f"Received: folder={str(folder)!r}, fingerprint={autoencoder.fingerprint()[:16]}, "
            f"there {found[:16]}"
        )


def note(path: Path, content: dict | list, indent: int | None = 1) -> None:
    """Writes plain data as JSON, whole or not at all."""
    text = json.dumps(content, indent=indent, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _read_begun(folder: Path) -> tuple[dict | None, bool]:
    """Returns what a folder says that it was begun for, if it was, and whether all is done."""
    finished = (folder / INDEX).exists()
    path = folder / (INDEX if finished else PROGRESS)
    if not path.exists():
        return None, False
    try:
        found = json.loads(path.read_text("utf-8"))
        for name in _DECISIVE:
            found[name]
        for name in ("name", "fingerprint"):
            found["autoencoder"][name]
        for shard in found["shards"]:
            folder / shard["file"], 0 + shard["count"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{path.name}: {type(error).__name__}: {error}") from error
    return found, finished


def _refuse(folder: Path, differing: list[str], request: dict, found: dict, finished: bool) -> None:
    """Raises an error if anything differs between a request and what a folder was begun for."""
    if not differing:
        return
    pairs = "; ".join(
        f"{name}={request[name]!r}, there {found[name]!r}" for name in sorted(differing)
    )
    received = f"Received: folder={str(folder)!r}, {pairs}"
    if finished and differing == ["source_digest"]:
        raise ValueError(
            "The folder holds finished latents of other images, or of these before their files "
            "were moved or changed. If they are the same, use the latents as they are, as "
            f"latents:{folder}; if not, choose another folder. {received}"
        )
    raise ValueError(
        "The folder holds latents of another request: choose another folder, or repeat the "
        f"command as it was. {received}"
    )


def _damaged(folder: Path, reason: str) -> ValueError:
    return ValueError(
        "The folder of latents is damaged: remove it and encode the images anew. "
        f"Received: folder={str(folder)!r} ({reason})"
    )

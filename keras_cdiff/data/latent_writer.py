"""Encodes images into a store of latents: plans it, goes on where it was stopped, and checks it."""

import contextlib
import difflib
import json
import os
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import keras
import numpy as np

from keras_cdiff.autoencoders import Autoencoder, fit_autoencoder, open_autoencoder
from keras_cdiff.autoencoders.autoencoder import FORMS as AUTOENCODER_FORMS
from keras_cdiff.common.checks import check_integer, parse_name
from keras_cdiff.common.files import file_digest, write_whole
from keras_cdiff.common.store import write_json
from keras_cdiff.data.captions import CaptionEmbeddings
from keras_cdiff.data.latents import COPY, FORMAT, INDEX, LatentSource, latent_store
from keras_cdiff.data.pipeline import make_dataset, prepare_image
from keras_cdiff.data.source import Source
from keras_cdiff.data.sources import IMAGE_FORMS
from keras_cdiff.data.text_encoders import FORMS as TEXT_FORMS
from keras_cdiff.distribution import share, sharing

_PROGRESS = "progress.json"
_FIT = "autoencoder_request.json"

IN_USE = (
    "Latents are being written there by another process: wait until it is done, or choose another "
    "folder."
)

# What makes latents others. Names do not: a folder may be found by another path. Of folder: and
# tfds: sources the digest changes too when their files are moved or touched.
_DECISIVE = ("format", "source_digest", "image_size", "mirrored", "dtype", "shard_size")


def encode_source(
    source: Source,
    autoencoder: Autoencoder,
    image_size: int,
    folder: str | os.PathLike,
    batch_size: int = 16,
    mirrored: bool = True,
    shard_size: int = 1024,
    progress: bool = True,
) -> LatentSource:
    """Writes the moments of the latents of all images of a source, as `LatentSource` reads them.

    Images are prepared by `prepare_image` and encoded as RGB. The moments are kept as float16:
    standard deviations below 6e-8 become 0. An autoencoder of the kind "kl" is copied into the
    store. Files are written atomically: an interrupted call, repeated, goes on after the last one
    and ends with the same bytes. A finished store is opened.

    Under `distribution.shared_by` each process writes a file at a time; the bytes do not depend on
    the number of processes, which may change between calls.

    Args:
        source: The images, with their labels and captions.
        autoencoder: The network.
        image_size: The side of the images in pixels, a multiple of the autoencoder's factor.
        folder: The store; it is made if missing.
        batch_size: Images that the network sees at once.
        mirrored: Whether the images mirrored left to right are encoded as well, for training with
            flips: an encoder does not commute with mirroring.
        shard_size: Images in a file.
        progress: Whether a progress bar over the images is shown, by the first process.

    Returns:
        The latents.

    Raises:
        ValueError: If an argument is out of range, an image cannot be read, moments exceed float16,
            or the folder is in use, is damaged or holds something else.
        OSError: If the system does not let a file be read or written.
        LostPeer: If another of several processes has failed or ended.
    """
    check_integer("batch_size", batch_size)
    check_integer("shard_size", shard_size)
    if isinstance(source, LatentSource):
        raise ValueError(
            f"Latents are made of images; give the source {source.source_name!r}. "
            f"Received: source={source.name!r}"
        )
    check_integer("image_size", image_size, autoencoder.factor)
    if image_size % autoencoder.factor:
        raise ValueError(
            f"image_size must be a multiple of {autoencoder.factor}, the autoencoder's factor. "
            f"Received: image_size={image_size}"
        )
    folder, processes, mirrored = Path(folder), sharing(), bool(mirrored)
    request = _request(source, image_size, mirrored, shard_size, autoencoder)
    if processes.count > 1:
        decisive = (request["source_digest"], autoencoder.fingerprint(), image_size, mirrored)
        processes.check_same("request for latents", (*decisive, shard_size, batch_size))
    with contextlib.ExitStack() as held:

        def begin(folder: Path) -> tuple[dict, bool]:
            held.enter_context(latent_store(folder).writing(IN_USE))
            found, finished = _begin(folder, request)
            if not finished and autoencoder.kind == "kl":
                _keep_autoencoder(autoencoder, folder)
            return found, finished

        index, finished = next(share([folder], begin))
        if not finished:
            bar = None
            if progress and processes.first:
                bar = keras.utils.Progbar(len(source), unit_name="image")
            _write_missing(source, autoencoder, index, folder, batch_size, bar)
            if processes.first:
                _write_index(source, index, folder)
        if processes.first:
            (folder / _PROGRESS).unlink(missing_ok=True)
    processes.barrier()  # now the others find the index
    return LatentSource(folder)


def _write_missing(
    source: Source,
    autoencoder: Autoencoder,
    index: dict,
    folder: Path,
    batch_size: int,
    bar: keras.utils.Progbar | None,
) -> None:
    """Writes the shards that the index lacks, each process one at a time, and adds them to it."""
    processes, shards = sharing(), index["shards"]
    missing = range(len(shards), -(-index["count"] // index["shard_size"]))
    numbers = missing[processes.index :: processes.count]
    own = _write_shards(source, autoencoder, index, folder, numbers, batch_size, bar)
    for shard in share(missing, lambda number: next(own)):
        shards.append(shard)
        if processes.first:
            write_json(folder / _PROGRESS, index)
        if bar is not None and processes.count > 1:
            bar.update(sum(shard["count"] for shard in shards))


def _write_shards(
    source: Source,
    autoencoder: Autoencoder,
    index: dict,
    folder: Path,
    numbers: range,
    batch_size: int,
    bar: keras.utils.Progbar | None,
) -> Iterator[dict]:
    """Writes the shards of these numbers and yields what the index says of each."""
    count, shard_size = index["count"], index["shard_size"]
    views = 2 if index["mirrored"] else 1
    side, channels = index["latent_size"], index["channels"]
    # A batch lies in one shard: then its number and not the start of the process decides it.
    places = [
        range(start, min(start + batch_size, begin + shard_size, count))
        for begin in (number * shard_size for number in numbers)
        for start in range(begin, min(begin + shard_size, count), batch_size)
    ]
    batches = _prepared(source, places, index["image_size"], batch_size)
    for number in numbers:
        begin = number * shard_size
        length = min(shard_size, count - begin)
        moments = np.empty((length, views, side, side, 2 * channels), "<f2")
        filled = 0
        while filled < length:
            batch, images = next(batches)
            rows = moments[filled : filled + len(batch)]
            rows[:, 0] = _half(autoencoder.moments(images), batch)
            if views == 2:
                mirrored = np.ascontiguousarray(images[:, :, ::-1])
                rows[:, 1] = _half(autoencoder.moments(mirrored), batch)
            filled += len(batch)
            if bar is not None:
                bar.update(begin + filled)
        path = folder / f"moments-{number:05d}.npy"
        write_whole(path, lambda temporary, moments=moments: np.save(temporary, moments))
        yield {"file": path.name, "count": length, "sha256": file_digest(path)}


def _prepared(
    source: Source, places: list[range], image_size: int, batch_size: int
) -> Iterator[tuple[range, np.ndarray]]:
    """Yields batches of prepared images, always `batch_size` of them: a short one is filled up.

    Threads prepare the next batch while the network works on one; decoding releases the lock.
    """

    def read(place: int) -> np.ndarray:
        try:
            return prepare_image(source[place]["image"], image_size)
        except Exception as error:
            raise ValueError(
                "An image cannot be read: restore it, then repeat the command; what was encoded is "
                f"kept. Received: example {place} of {source.name!r} "
                f"({type(error).__name__}: {error})"
            ) from error

    with ThreadPool(min(4, os.cpu_count() or 1)) as pool:
        coming = None
        for batch, following in zip(places, [*places[1:], None], strict=True):
            images = np.stack((coming or pool.map_async(read, batch)).get())
            if following is not None:
                coming = pool.map_async(read, following)
            missing = batch_size - len(images)
            yield batch, np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])


def _half(moments: np.ndarray, batch: range) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = moments[: len(batch)].astype("<f2")
    finite = np.isfinite(half).all(axis=(1, 2, 3))
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            "The moments of latents must be finite and below 65,504: the autoencoder does not suit "
            f"the image, or its weights are damaged. Received: image {batch[row]}, with moments up "
            f"to {np.abs(moments[row]).max():g}"
        )
    return half


def _write_index(source: Source, index: dict, folder: Path) -> None:
    labels, captions = source.labels(), source.captions()
    parts = {"labels": None, "captions": None}
    if labels is not None:
        path = folder / "labels.npy"
        write_whole(path, lambda temporary: np.save(temporary, labels.astype("<i4")))
        parts["labels"] = {"file": path.name, "sha256": file_digest(path)}
    if captions is not None:
        path = folder / "captions.json"
        write_json(path, [list(each) for each in captions], indent=None)
        parts["captions"] = {"file": path.name, "sha256": file_digest(path)}
    write_json(folder / INDEX, {**index, **parts})


def check_store(folder: str | os.PathLike) -> dict[str, int]:
    """Compares every file of a store with its checksum: latents, labels, captions, their embeddings
    and the copy of the autoencoder.

    Args:
        folder: A finished store.

    Returns:
        How many were checked: "images", "embeddings" (one for each text encoder) and
        "autoencoders" (0 or 1).

    Raises:
        ValueError: If the store is not complete, or one of the files differs.
    """
    latents = LatentSource(folder, read_all=True)
    embeddings = sorted((latents.folder / "text").glob("text-*"))
    for each in embeddings:
        CaptionEmbeddings(each, read_all=True)
    copies = int(latents.keeps_autoencoder)
    if copies:
        open_autoencoder(latents.autoencoder_name(), latents.autoencoder["fingerprint"])
    return {"images": len(latents), "embeddings": len(embeddings), "autoencoders": copies}


def count_encoded(folder: str | os.PathLike) -> int:
    """Returns how many images lie in the complete files of a store, finished or not.

    Raises:
        ValueError: If the store is damaged.
    """
    found, _ = _read_begun(Path(folder))
    return 0 if found is None else sum(shard["count"] for shard in found["shards"])


def _request(
    source: Source,
    image_size: int,
    mirrored: bool,
    shard_size: int,
    autoencoder: Autoencoder | None,
) -> dict:
    """The index but for its files; without an autoencoder, as far as it is known."""
    description, sizes = "one of the kind kl", {}
    if autoencoder is not None:
        description = autoencoder.describe()
        if autoencoder.kind == "kl":
            description["name"] = COPY  # where it was before says nothing later
        side = image_size // autoencoder.factor
        sizes = {"latent_size": side, "channels": autoencoder.channels}
    # The order is that of the index, by whose bytes finished runs know their latents.
    return {
        "format": FORMAT,
        "autoencoder": description,
        "source": source.name,
        "source_digest": source.digest(),
        "image_size": image_size,
        **sizes,
        "count": len(source),
        "mirrored": mirrored,
        "dtype": "float16",
        "shard_size": shard_size,
        "num_classes": source.num_classes,
        "class_names": list(source.class_names),
    }


def _begin(folder: Path, request: dict) -> tuple[dict, bool]:
    """Returns what `_read_begun` does; an empty folder is begun for the request."""
    found, finished = _read_begun(folder)
    if found is None:
        found = {**request, "shards": []}
        write_json(folder / _PROGRESS, found)
    other = found["autoencoder"]["fingerprint"] != request["autoencoder"]["fingerprint"]
    _check_same(folder, request, found, finished, other)
    for shard in () if finished else found["shards"]:
        if not (folder / shard["file"]).is_file():
            raise latent_store(folder).damaged(f"{shard['file']} is missing")
    return found, finished


def _read_begun(folder: Path) -> tuple[dict | None, bool]:
    """Returns the index of a folder as far as it goes, or None, and whether it is finished."""
    finished = (folder / INDEX).exists()
    path = folder / (INDEX if finished else _PROGRESS)
    if not path.exists():
        return None, False
    store = latent_store(folder)
    try:
        found = store.parse(path.read_bytes())
        for name in _DECISIVE:
            found[name]
        for name in ("name", "fingerprint"):
            found["autoencoder"][name]
        for shard in found["shards"]:
            folder / shard["file"], 0 + shard["count"]
    except (ValueError, KeyError, TypeError) as error:
        raise store.damaged(f"{path.name}: {type(error).__name__}: {error}") from error
    return found, finished


def _check_same(
    folder: Path, request: dict, found: dict, finished: bool, other_autoencoder: bool
) -> None:
    """Raises a ValueError if a folder was begun for another request."""
    differing = [name for name in _DECISIVE if found[name] != request[name]]
    differing += ["autoencoder"] * other_autoencoder
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


def _keep_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Copies an autoencoder of the kind "kl" into a store; raises if another one is there."""
    copy = folder / "autoencoder"
    if not copy.exists():
        autoencoder.save(copy)
        return
    with latent_store(folder).reading():
        found = json.loads((copy / "autoencoder.json").read_text("utf-8"))["fingerprint"]
    if found != autoencoder.fingerprint():
        raise ValueError(
            "The folder holds another autoencoder: choose another folder, or use that one. "
            f"Received: folder={str(folder)!r}, fingerprint={autoencoder.fingerprint()[:16]}, "
            f"there {found[:16]}"
        )


def fitted_autoencoder(
    source: Source,
    image_size: int,
    folder: str | os.PathLike,
    steps: int = 2000,
    seed: int = 0,
    mirrored: bool = True,
    shard_size: int = 1024,
) -> Autoencoder:
    """Returns an autoencoder that is fitted to a source's images, once, and kept in the store of
    their latents; an interrupted fit begins anew.

    Args:
        source: The images.
        image_size: The side of the images in pixels.
        folder: The store; FOLDER/autoencoder holds the autoencoder.
        steps: Training steps.
        seed: Of weights, order and draws.
        mirrored: Whether half the images are mirrored, and the mirrored ones encoded as well.
        shard_size: As of `encode_source`.

    Returns:
        The autoencoder, named "kl:FOLDER/autoencoder".

    Raises:
        ValueError: If an argument is out of range; if the folder holds latents of another request,
            an autoencoder of another fit, or is in use.
    """
    folder = Path(folder)
    check_begun(source, image_size, folder, mirrored, shard_size)
    store = latent_store(folder)
    request = {
        "source_digest": source.digest(),
        "image_size": image_size,
        "steps": steps,
        "seed": seed,
        "mirrored": bool(mirrored),
    }
    place = folder / "autoencoder"
    with store.writing(IN_USE):
        if place.exists():
            _check_fit(folder, request)
        else:
            images = make_dataset(
                source,
                image_size,
                min(16, len(source)),
                seed=seed,
                horizontal_flip=mirrored,
                labels=False,
            )
            fitted = fit_autoencoder(images, steps=steps, seed=seed)
            write_json(folder / _FIT, request)  # first: an autoencoder is never there without it
            fitted.save(place)
    return open_autoencoder(f"kl:{place}")


def _check_fit(folder: Path, request: dict) -> None:
    """Raises a ValueError unless the autoencoder of a folder is that of the request."""
    try:
        found = json.loads((folder / _FIT).read_text("utf-8"))
        differing = [name for name in request if found[name] != request[name]]
        pairs = [f"{name}={request[name]!r}, there {found[name]!r}" for name in differing]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        pairs = [f"{_FIT}, which cannot be read: {type(error).__name__}: {error}"]
    if pairs:
        raise ValueError(
            "The folder holds an autoencoder that was not fitted by this request: choose another "
            f"folder, by --output, or encode with it by --autoencoder=kl:{folder / 'autoencoder'}. "
            f"Received: folder={str(folder)!r}, {'; '.join(pairs)}"
        )


def check_begun(
    source: Source,
    image_size: int,
    folder: str | os.PathLike,
    mirrored: bool = True,
    shard_size: int = 1024,
) -> None:
    """Raises a ValueError if `encode_source` would refuse a folder, whatever autoencoder of the
    kind "kl" is fitted for it.
    """
    folder = Path(folder)
    found, finished = _read_begun(folder)
    if found is None:
        return
    request = _request(source, image_size, bool(mirrored), shard_size, None)
    _check_same(folder, request, found, finished, found["autoencoder"]["name"] != COPY)
    if not (folder / "autoencoder").is_dir():
        raise latent_store(folder).damaged("autoencoder is missing")


def plan_encoding(
    source: str,
    autoencoder: str,
    image_size: int,
    mirrored: bool,
    folder: str,
    text_encoder: str | None = None,
    geometry: tuple[int, int] | None = None,
) -> dict:
    """Returns what encoding a source would make; no data is opened.

        bytes of an image = 2 * views * (image_size / factor)^2 * 2 channels

    Args:
        source: The images, as for `open_source`.
        autoencoder: The name of the autoencoder, or "train".
        image_size: The side of the images in pixels, a multiple of the autoencoder's factor.
        mirrored: Whether mirrored images are encoded as well.
        folder: The store.
        text_encoder: The encoder of the captions; None leaves them as they are.
        geometry: Factor and channels of an autoencoder of the kind "kl".

    Returns:
        Plain data: the arguments, "found" (whether the data is there, without looking into it),
        "latent_shape", "bytes_an_image" and "preset" (of a network for such latents, or None).

    Raises:
        ValueError: If the name of the source, the autoencoder or the text encoder or a size cannot
            be right.
    """
    forms = (*AUTOENCODER_FORMS, "train")
    kind, _ = parse_name("An autoencoder", forms, "autoencoder", autoencoder)
    factor, channels = geometry or (8 if kind == "stable_diffusion" else 4, 4)
    if text_encoder is not None:
        parse_name("A text encoder", TEXT_FORMS, "text_encoder", text_encoder)
    if image_size < factor or image_size % factor:
        raise ValueError(
            f"image_size must be a multiple of {factor}, the autoencoder's factor. "
            f"Received: image_size={image_size}"
        )
    scheme, name = check_source_name(source)
    side, views = image_size // factor, 2 if mirrored else 1
    labelled = (scheme, name.partition("/")[0]) == ("tfds", "imagenet2012")
    data_set = "coco" if text_encoder else "imagenet" if labelled else "ffhq"
    presets = {(16, 4): "dit_latent_emoji64", (32, 4): f"dit_b_2_{data_set}256"}
    return {
        "data": source,
        "image_size": image_size,
        "autoencoder": autoencoder,
        "text_encoder": text_encoder,
        "output": folder,
        "mirrored": mirrored,
        "found": _is_there(scheme, name),
        "latent_shape": [side, side, channels],
        "bytes_an_image": 2 * views * side * side * 2 * channels,
        "preset": presets.get((side, channels)),
    }


def check_source_name(spec: str) -> tuple[str, str]:
    """Returns the scheme of a source of images, and its path or data set ("" of the emoji), without
    opening it.

    Raises:
        ValueError: If it names no such source, or a data set that TFDS neither knows nor holds
            prepared.
    """
    scheme, rest = parse_name("A source of images to encode", IMAGE_FORMS, "source", spec)
    if scheme != "tfds":
        return scheme, rest
    import tensorflow_datasets as tfds

    name = rest.partition(":")[0]
    plain = name.partition("/")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if plain not in known and not _is_there(scheme, name):
        near = difflib.get_close_matches(plain, known, n=3)
        hint = f"It knows {', '.join(near)}. " if near else ""
        raise ValueError(
            f"TFDS must know the data set, or hold it prepared under {_tfds_folder()}: correct the "
            f"name, or use folder:PATH. {hint}Received: source={spec!r}"
        )
    return scheme, name


def _is_there(scheme: str, name: str) -> bool:
    if scheme == "emoji":
        return True
    return (_tfds_folder() / name if scheme == "tfds" else Path(name)).exists()


def _tfds_folder() -> Path:
    folder = os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    return Path(folder).expanduser()

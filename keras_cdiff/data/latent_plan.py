"""What encoding images into latents would take and make, told without the images."""

import difflib
import os
import shlex
from pathlib import Path

# What is trained on latents of 32 x 32 x 4: with labels, with text, and with neither.
_LABELS, _TEXT, _NEITHER = "dit_b_2_imagenet256", "dit_b_2_coco256", "dit_b_2_ffhq256"
_TEXT_ENCODER = "clip"  # of that with text
_SMALL = (
    "dit_latent_emoji64"  # on latents of 16 x 16 x 4, with labels unless a text encoder is given
)

# Factor and channels of the autoencoders that need not be opened to know them.
_GEOMETRY = {"stable_diffusion": (8, 4), "train": (4, 4)}


def plan_encoding(
    source: str,
    autoencoder: str,
    image_size: int,
    mirrored: bool,
    folder: str,
    text_encoder: str | None = None,
    geometry: tuple[int, int] | None = None,
) -> dict:
    """Returns what encoding a source would make and which commands make it; no data is opened.

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
        Plain data: what was asked for, "found" (whether the data is there, without looking into
        it), "latent_shape", "bytes_an_image", "preset" (of the network that is made for such
        latents, or None), "note" (what else is to be known of training, or None), and "commands" in
        the order to run them; that of training is left out where there is no preset.

    Raises:
        ValueError: If the name of the source, the autoencoder or the text encoder or a size cannot
            be right.
    """
    factor, channels = _checked_geometry(autoencoder, geometry)
    _check_text_encoder(text_encoder)
    if image_size < factor or image_size % factor:
        raise ValueError(
            f"image_size must be a multiple of {factor}, the autoencoder's factor. "
            f"Received: image_size={image_size}"
        )
    scheme, name = check_source_name(source)
    side, views = image_size // factor, 2 if mirrored else 1
    commands = []
    if scheme == "tfds":
        code = (
            "import tensorflow_datasets as tfds; "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        )
        commands.append(f'python -c "{code}"')
    arguments = {
        "data": source,
        "image_size": image_size,
        "autoencoder": autoencoder,
        "text_encoder": text_encoder,
        "output": folder,
    }
    given = [f"--{key}={shlex.quote(str(v))}" for key, v in arguments.items() if v is not None]
    if not mirrored:
        given.append("--nomirrored")
    store = shlex.quote(folder)
    commands += [
        " ".join(["python apps/encode.py", *given]),
        f"python apps/encode.py --verify --output={store}",
    ]
    labelled = scheme == "tfds" and name.partition("/")[0] == "imagenet2012"
    preset, note = _preset(side, channels, labelled, text_encoder)
    if preset is not None:
        train = ["python apps/train.py", f"--preset={preset}", f"--data=latents:{store}"]
        if text_encoder is not None and (preset, text_encoder) != (_TEXT, _TEXT_ENCODER):
            train.append(f"--text_encoder={shlex.quote(text_encoder)}")
        train.append(f"--workdir=runs/{shlex.quote(Path(folder).name or 'latents')}")
        commands.append(" ".join(train))
    return {
        **arguments,
        "mirrored": mirrored,
        "found": _is_there(scheme, name),
        "latent_shape": [side, side, channels],
        "bytes_an_image": 2 * views * side * side * 2 * channels,
        "preset": preset,
        "note": note,
        "commands": commands,
    }


def check_source_name(spec: str) -> tuple[str, str]:
    """Checks the name of a source of images as far as that goes without its data.

    Args:
        spec: The source, as for `open_source`.

    Returns:
        The scheme, and the path or the data set with its configuration ("" of the emoji).

    Raises:
        ValueError: If it names no source of images, or a data set that TFDS neither knows nor holds
            prepared. The network is not asked.
    """
    scheme, _, rest = spec.partition(":")
    if spec == "emoji":
        return spec, ""
    if scheme not in ("npz", "folder", "tfds") or not rest:
        raise ValueError(
            "Images to encode are emoji, npz:PATH, folder:PATH or tfds:NAME[/CONFIG][:SPLIT]. "
            f"Received: source={spec!r}"
        )
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


def _checked_geometry(autoencoder: str, geometry: tuple[int, int] | None) -> tuple[int, int]:
    """Factor and channels of an autoencoder whose name can be right."""
    kind, colon, place = autoencoder.partition(":")
    named = bool(place) if colon else kind != "kl"  # a fitted one lies in a folder
    geometry = geometry if kind == "kl" else _GEOMETRY.get(kind)
    if geometry is None or not named or (kind == "train" and colon):
        raise ValueError(
            "The autoencoder must be stable_diffusion, stable_diffusion:FOLDER, "
            "stable_diffusion:random, kl:FOLDER or train. "
            f"Received: autoencoder={autoencoder!r}"
        )
    return geometry


def _check_text_encoder(name: str | None) -> None:
    kind, _, place = (name or "").partition(":")
    if name not in (None, "clip") and (kind not in ("minilm", "clip") or not place):
        raise ValueError(
            "A text encoder is minilm:PATH, clip, clip:FOLDER or clip:random. "
            f"Received: text_encoder={name!r}"
        )


def _preset(
    side: int, channels: int, labelled: bool, text_encoder: str | None
) -> tuple[str | None, str | None]:
    """The preset of a network for latents, and what else is to be said; or None for either."""
    if (side, channels) == (32, 4):
        return (_TEXT if text_encoder else _LABELS if labelled else _NEITHER), None
    if (side, channels) == (16, 4):
        note = "images without labels need --num_classes=0 for training as well"
        return _SMALL, None if text_encoder else note
    note = f"no preset is of {side} x {side} x {channels} latents: "
    if channels == 4:
        return None, f"{note}give apps/train.py a --preset of latents and --image_size={side}"
    return None, f"{note}build a network of {channels} channels in Python"


def _is_there(scheme: str, name: str) -> bool:
    if scheme == "emoji":
        return True
    return (_tfds_folder() / name if scheme == "tfds" else Path(name)).exists()


def _tfds_folder() -> Path:
    folder = os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    return Path(folder).expanduser()

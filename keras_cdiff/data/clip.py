"""The text encoder of Stable Diffusion: CLIP ViT-L/14, as the package keras-cv has it.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(2021), and Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022).
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_cdiff.data.text import TextEncoder
from keras_cdiff.weights import RemoteFile, fetch
from keras_cdiff.weights.keras_networks import float32_layers, load_keras_weights

MAX_LENGTH = 77
WIDTH = 768

WEIGHTS = RemoteFile(
    "https://huggingface.co/fchollet/stable-diffusion/resolve/main/kcv_encoder.h5",
    None,
    "4789e63e07c0e54d6a34a29b45ce81ece27060c499a709d556c7755b42bb0dc4",
)
VOCABULARY = RemoteFile(
    "https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
    1_356_917,
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)


def open_clip(place: str = "") -> TextEncoder:
    """Opens CLIP's text encoder of 12 layers, 77 tokens of width 768.

    A text becomes a token of its start, its byte pairs in lower case and a token of its end, 77 in
    all at most. Each sees itself and those before it.

    Args:
        place: a folder that holds kcv_encoder.h5, the weights as keras-cv saves them, and
            bpe_simple_vocab_16e6.txt.gz, the byte pairs; or "" to download both once, about 0.5 GB;
            or "random" for weights drawn from a fixed seed and a token for each byte of UTF-8, for
            trying things out.

    Returns:
        The encoder, named "clip" or "clip:PLACE".

    Raises:
        ValueError: if a file is missing, cannot be downloaded or read.
        ModuleNotFoundError: if the package keras-cv is missing.
    """
    try:
        from keras_cv.models import stable_diffusion
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "CLIP needs the package keras-cv: pip install keras-cdiff[latent]"
        ) from error
    if place == "random":
        tokenizer, size, tokenize = b"bytes", 258, _bytes
    else:
        weights, vocabulary = _files(place)
        tokenizer = vocabulary.read_bytes()
        size, tokenize = _byte_pairs(stable_diffusion.SimpleTokenizer, vocabulary)
    with float32_layers():
        network = stable_diffusion.TextEncoder(MAX_LENGTH, size, download_weights=False)
    if place == "random":
        _draw(network)
    else:
        what = "keras-cv's TextEncoder, with a row for each token of the vocabulary"
        load_keras_weights(network, weights, f"{what}, from {WEIGHTS.url}")

    def identity() -> Mapping[str, str | bytes | np.ndarray]:
        arrays = {f"weights/{n:03}": array for n, array in enumerate(network.get_weights())}
        return {"kind": "clip", "tokenizer": tokenizer, **arrays}

    return TextEncoder(
        f"clip:{place}" if place else "clip",
        _Causal(network),
        tokenize,
        width=WIDTH,
        max_length=MAX_LENGTH,
        identity=identity,
        step=MAX_LENGTH,
    )


class _Causal(keras.Model):
    """A causal network of tokens and positions; padding, which comes last, needs no mask."""

    def __init__(self, network: keras.Model):
        super().__init__(dtype="float32")
        self.network, self.built = network, True

    def call(self, inputs: list[keras.KerasTensor]) -> keras.KerasTensor:
        tokens, _ = inputs
        positions = ops.broadcast_to(ops.arange(tokens.shape[1], dtype="int32"), ops.shape(tokens))
        return self.network([tokens, positions])


def _files(place: str) -> list[Path]:
    """The paths of weights and vocabulary."""
    if not place:
        vocabulary = fetch(VOCABULARY)  # first, for what is small fails fast
        return [fetch(WEIGHTS), vocabulary]
    folder = Path(place).expanduser()
    paths = [folder / WEIGHTS.name, folder / VOCABULARY.name]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"A folder of CLIP must hold what {WEIGHTS.url} and {VOCABULARY.url} are; it lacks "
            f"{' and '.join(missing)}. Received: folder={place!r}"
        )
    return paths


def _byte_pairs(kind: type, path: Path) -> tuple[int, Callable[[str], list[int]]]:
    """The number of tokens of a vocabulary, and a function from a text to its tokens."""
    try:
        tokenizer = kind(str(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"The vocabulary must be CLIP's list of byte pairs; fetch it again from "
            f"{VOCABULARY.url}. The error was: {error}. Received: path={str(path)!r}"
        ) from error

    def tokenize(text: str) -> list[int]:
        tokens = tokenizer.encode(text)
        return [*tokens[: MAX_LENGTH - 1], tokens[-1]] if len(tokens) > MAX_LENGTH else tokens

    return len(tokenizer.vocab), tokenize


def _bytes(text: str) -> list[int]:
    return [256, *text.encode()[: MAX_LENGTH - 2], 257]


def _draw(network: keras.Model) -> None:
    """Random weights under which tokens keep their size from layer to layer."""
    rng = np.random.default_rng(0)
    arrays = []
    for weight in network.weights:
        if weight.name == "gamma":
            array = np.ones(weight.shape, np.float32)
        elif len(weight.shape) == 1:
            array = np.zeros(weight.shape, np.float32)
        else:
            array = rng.standard_normal(weight.shape, np.float32)
            if weight.name == "kernel":
                array *= np.float32(weight.shape[0] ** -0.5)
        arrays.append(array)
    network.set_weights(arrays)

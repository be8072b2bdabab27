"""Text encoders by name: BERTs such as all-MiniLM-L6-v2, and the CLIP of Stable Diffusion.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019); Wang et al.,
"MiniLM: Deep Self-Attention Distillation" (2020), whose weights the project sentence-transformers
publishes under the Apache License 2.0; Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision" (2021); and Rombach et al., "High-Resolution Image Synthesis with
Latent Diffusion Models" (2022).
"""

import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_cdiff.common.checks import parse_name
from keras_cdiff.data.text import TextEncoder
from keras_cdiff.weights import RemoteFile, fetch, read_state_dict
from keras_cdiff.weights.keras_networks import float32_layers, load_keras_weights

FORMS = ("minilm:PATH", "clip", "clip:FOLDER", "clip:random")


def open_text_encoder(name: str, fingerprint: str | None = None) -> TextEncoder:
    """Opens the text encoder that a string names.

    `minilm:PATH`: all-MiniLM-L6-v2, or another BERT of its kind; see `open_minilm`. 32 tokens of
    width 384.
    `clip`: the text encoder of Stable Diffusion, CLIP ViT-L/14, downloaded once. 77 tokens of width
    768. `clip:FOLDER` finds its files there; `clip:random` has random weights and reads bytes, for
    trying things out.

    Args:
        name: the encoder, in one of the forms above.
        fingerprint: what `fingerprint()` must give; None takes any.

    Returns:
        The encoder. `.name` is `name`.

    Raises:
        ValueError: if the name is unknown, the files are not what they should be, or the
            fingerprint is another.
    """
    kind, place = parse_name("A text encoder", FORMS, "name", name)
    encoder = open_minilm(place) if kind == "minilm" else open_clip(place)
    if fingerprint is not None and encoder.fingerprint() != fingerprint:
        raise ValueError(
            "Captions, model and prompt must use the same text encoder: that of the model has the "
            f"fingerprint {fingerprint}, this one {encoder.fingerprint()}. Open the one that the "
            f"model was trained with. Received: name={name!r}"
        )
    return encoder


MINILM_LENGTH = 32
_HEAD_WIDTH = 32  # features of a head, in every MiniLM
_EPSILON = 1e-12
_TOKENIZER = "tokenizer.json"
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_LAYER = "encoder.layer"


def open_minilm(path: str | os.PathLike, max_length: int = MINILM_LENGTH) -> TextEncoder:
    """Opens a BERT whose heads have 32 features, such as all-MiniLM-L6-v2.

    A text becomes [CLS], its word pieces and [SEP], and each of these a row of the last layer.
    Depth and width are those of the arrays.

    Args:
        path: an .npz of the arrays under Hugging Face's names and, as uint8 bytes, tokenizer.json;
            or a folder with model.safetensors and tokenizer.json.
        max_length: tokens kept of a text, [CLS] and [SEP] included.

    Returns:
        The encoder, named "minilm:PATH".

    Raises:
        ValueError: if files or arrays are missing or do not fit together.
        ModuleNotFoundError: if the package tokenizers is missing.
    """
    arrays, tokenizer = _read_minilm(Path(path).expanduser())
    received = f"Received: path={str(path)!r}"
    arrays = _bert_arrays(arrays, received)
    vocabulary, width = arrays[_WORDS].shape
    positions = len(arrays[_POSITIONS])
    if not 2 <= max_length <= positions:
        raise ValueError(
            "The length must hold [CLS] and [SEP], and not exceed the positions that the network "
            f"knows: it lies in [2, {positions}]. Received: max_length={max_length}"
        )
    return TextEncoder(
        f"minilm:{path}",
        _bert(arrays),
        _word_pieces(tokenizer, max_length, vocabulary, received),
        width=width,
        max_length=max_length,
        identity=lambda: {"kind": "minilm", "tokenizer": tokenizer, **arrays},
    )


def _read_minilm(path: Path) -> tuple[dict[str, np.ndarray], bytes]:
    """The arrays and the tokenizer's file."""
    if path.is_dir():
        parts = [path / "model.safetensors", path / _TOKENIZER]
        missing = [part.name for part in parts if not part.is_file()]
        if missing:
            raise ValueError(
                f"A folder of MiniLM must hold model.safetensors and {_TOKENIZER}; it lacks "
                f"{', '.join(missing)}. Received: path={str(path)!r}"
            )
        return read_state_dict(parts[0]), parts[1].read_bytes()
    arrays = read_state_dict(path)
    tokenizer = arrays.pop(_TOKENIZER, None)
    if tokenizer is None or tokenizer.dtype != np.uint8:
        raise ValueError(
            f"A file of MiniLM must hold the bytes of its {_TOKENIZER} as a uint8 array of that "
            "name: np.frombuffer(open(...).read(), np.uint8). "
            f"Received: path={str(path)!r}"
        )
    return arrays, tokenizer.tobytes()


def _word_pieces(
    content: bytes, max_length: int, vocabulary: int, received: str
) -> Callable[[str], list[int]]:
    """A function from a text to its tokens."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MiniLM needs the package tokenizers: pip install keras-cdiff[text]"
        ) from error
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # its only kind of error
        raise ValueError(
            f"{_TOKENIZER} must be one that the package tokenizers reads. The error was: {error}. "
            f"{received}"
        ) from error
    if tokenizer.get_vocab_size() > vocabulary:
        raise ValueError(
            f"Tokenizer and weights must be those of one model: the tokenizer knows "
            f"{tokenizer.get_vocab_size()} tokens, the weights {vocabulary}. {received}"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return lambda text: tokenizer.encode(text).ids


def _bert_arrays(arrays: dict[str, np.ndarray], received: str) -> dict[str, np.ndarray]:
    """The arrays that the network needs, as float32."""
    depth = len({name.split(".")[2] for name in arrays if name.startswith(f"{_LAYER}.")})
    width = arrays[_WORDS].shape[-1] if _WORDS in arrays else 0
    inner = len(arrays.get(f"{_LAYER}.0.intermediate.dense.bias", ()))
    shapes = {_WORDS: (None, width), _POSITIONS: (None, width), _TYPES: (None, width)}
    shapes |= _norm_shapes("embeddings.LayerNorm", width)
    for n in range(max(depth, 1)):
        layer = f"{_LAYER}.{n}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense_shapes(f"{layer}.attention.{part}", width, width)
        shapes |= _norm_shapes(f"{layer}.attention.output.LayerNorm", width)
        shapes |= _dense_shapes(f"{layer}.intermediate.dense", width, inner)
        shapes |= _dense_shapes(f"{layer}.output.dense", inner, width)
        shapes |= _norm_shapes(f"{layer}.output.LayerNorm", width)
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise ValueError(
            "The weights of MiniLM must have the names of Hugging Face's BertModel; they lack "
            f"{', '.join(missing[:4])}{f' and {len(missing) - 4} more' if missing[4:] else ''}. "
            f"{received}"
        )
    for name, shape in shapes.items():
        found = arrays[name].shape
        if len(found) != len(shape) or found[-1] != shape[-1] or shape[0] not in (None, found[0]):
            raise ValueError(
                f"The arrays of MiniLM must fit together: {name} must have the shape {shape}. "
                f"{received}, with the shape {found}"
            )
    if width % _HEAD_WIDTH or not width:
        raise ValueError(
            f"The heads of MiniLM have {_HEAD_WIDTH} features: its width must be a multiple. "
            f"{received}, with the width {width}"
        )
    return {name: np.asarray(arrays[name], np.float32) for name in shapes}


def _dense_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm_shapes(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _bert(arrays: dict[str, np.ndarray]) -> keras.Model:
    """BERT's encoder with its weights, in float32 under every policy."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    present = keras.Input((None,), dtype="bool", name="present")
    place = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    positions = arrays[_POSITIONS] + arrays[_TYPES][0]  # one text is all of the first type
    x = _embedded(tokens, arrays[_WORDS]) + _embedded(place, positions)
    x = _normalised(x, arrays, "embeddings.LayerNorm")
    seen = present[:, None, :]  # by each token: those that are there
    depth = sum(name.endswith("intermediate.dense.bias") for name in arrays)
    for n in range(depth):
        layer = f"{_LAYER}.{n}"
        x = _normalised(
            x + _attended(x, seen, arrays, f"{layer}.attention"),
            arrays,
            f"{layer}.attention.output.LayerNorm",
        )
        y = _linear(x, arrays, f"{layer}.intermediate.dense")
        y = _linear(ops.gelu(y, approximate=False), arrays, f"{layer}.output.dense")
        x = _normalised(x + y, arrays, f"{layer}.output.LayerNorm")
    return keras.Model([tokens, present], x, name="bert")


def _attended(
    x: keras.KerasTensor, seen: keras.KerasTensor, arrays: dict[str, np.ndarray], name: str
) -> keras.KerasTensor:
    width = x.shape[-1]
    heads = width // _HEAD_WIDTH
    attention = keras.layers.MultiHeadAttention(
        heads, _HEAD_WIDTH, dtype="float32", kernel_initializer="zeros"
    )
    weights = []
    for part in ("self.query", "self.key", "self.value"):
        weights.append(arrays[f"{name}.{part}.weight"].T.reshape(width, heads, _HEAD_WIDTH))
        weights.append(arrays[f"{name}.{part}.bias"].reshape(heads, _HEAD_WIDTH))
    weights.append(arrays[f"{name}.output.dense.weight"].T.reshape(heads, _HEAD_WIDTH, width))
    weights.append(arrays[f"{name}.output.dense.bias"])
    return _applied(attention, weights, x, x, attention_mask=seen)


def _embedded(indices: keras.KerasTensor, table: np.ndarray) -> keras.KerasTensor:
    embedding = keras.layers.Embedding(
        *table.shape, dtype="float32", embeddings_initializer="zeros"
    )
    return _applied(embedding, [table], indices)


def _linear(x: keras.KerasTensor, arrays: dict[str, np.ndarray], name: str) -> keras.KerasTensor:
    kernel, bias = arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]
    dense = keras.layers.Dense(len(bias), dtype="float32", kernel_initializer="zeros")
    return _applied(dense, [kernel, bias], x)


def _normalised(
    x: keras.KerasTensor, arrays: dict[str, np.ndarray], name: str
) -> keras.KerasTensor:
    norm = keras.layers.LayerNormalization(epsilon=_EPSILON, dtype="float32")
    return _applied(norm, [arrays[f"{name}.weight"], arrays[f"{name}.bias"]], x)


def _applied(
    layer: keras.Layer, weights: list[np.ndarray], *inputs: keras.KerasTensor, **options: object
) -> keras.KerasTensor:
    """The outputs of a layer, which is built by that and then takes the weights."""
    outputs = layer(*inputs, **options)
    layer.set_weights(weights)
    return outputs


CLIP_LENGTH = 77
CLIP_WIDTH = 768

CLIP_WEIGHTS = RemoteFile(
    "https://huggingface.co/fchollet/stable-diffusion/resolve/main/kcv_encoder.h5",
    None,
    "4789e63e07c0e54d6a34a29b45ce81ece27060c499a709d556c7755b42bb0dc4",
)
CLIP_VOCABULARY = RemoteFile(
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
        weights, vocabulary = _clip_files(place)
        tokenizer = vocabulary.read_bytes()
        size, tokenize = _byte_pairs(stable_diffusion.SimpleTokenizer, vocabulary)
    with float32_layers():
        network = stable_diffusion.TextEncoder(CLIP_LENGTH, size, download_weights=False)
    if place == "random":
        _draw_clip(network)
    else:
        what = "keras-cv's TextEncoder, with a row for each token of the vocabulary"
        load_keras_weights(network, weights, f"{what}, from {CLIP_WEIGHTS.url}")

    def identity() -> Mapping[str, str | bytes | np.ndarray]:
        arrays = {f"weights/{n:03}": array for n, array in enumerate(network.get_weights())}
        return {"kind": "clip", "tokenizer": tokenizer, **arrays}

    return TextEncoder(
        f"clip:{place}" if place else "clip",
        _Causal(network),
        tokenize,
        width=CLIP_WIDTH,
        max_length=CLIP_LENGTH,
        identity=identity,
        step=CLIP_LENGTH,
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


def _clip_files(place: str) -> list[Path]:
    """The paths of weights and vocabulary."""
    if not place:
        vocabulary = fetch(CLIP_VOCABULARY)  # first, for what is small fails fast
        return [fetch(CLIP_WEIGHTS), vocabulary]
    folder = Path(place).expanduser()
    paths = [folder / CLIP_WEIGHTS.name, folder / CLIP_VOCABULARY.name]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"A folder of CLIP must hold what {CLIP_WEIGHTS.url} and {CLIP_VOCABULARY.url} are; "
            f"it lacks {' and '.join(missing)}. Received: folder={place!r}"
        )
    return paths


def _byte_pairs(kind: type, path: Path) -> tuple[int, Callable[[str], list[int]]]:
    """The number of tokens of a vocabulary, and a function from a text to its tokens."""
    try:
        tokenizer = kind(str(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"The vocabulary must be CLIP's list of byte pairs; fetch it again from "
            f"{CLIP_VOCABULARY.url}. The error was: {error}. Received: path={str(path)!r}"
        ) from error

    def tokenize(text: str) -> list[int]:
        tokens = tokenizer.encode(text)
        return [*tokens[: CLIP_LENGTH - 1], tokens[-1]] if len(tokens) > CLIP_LENGTH else tokens

    return len(tokenizer.vocab), tokenize


def _bytes(text: str) -> list[int]:
    return [256, *text.encode()[: CLIP_LENGTH - 2], 257]


def _draw_clip(network: keras.Model) -> None:
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

"""BERT as a text encoder: all-MiniLM-L6-v2 in Keras, from local files.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019), and Wang et
al., "MiniLM: Deep Self-Attention Distillation" (2020). The weights are published by the project
sentence-transformers, under the Apache License 2.0.
"""

import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_cdiff.data.text import TextEncoder
from keras_cdiff.weights import read_state_dict

MAX_LENGTH = 32
_HEAD_WIDTH = 32  # features of a head, in every MiniLM
_EPSILON = 1e-12
_TOKENIZER = "tokenizer.json"
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_LAYER = "encoder.layer"


def open_minilm(path: str | os.PathLike, max_length: int = MAX_LENGTH) -> TextEncoder:
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
    arrays, tokenizer = _read(Path(path).expanduser())
    received = f"Received: path={str(path)!r}"
    arrays = _checked(arrays, received)
    vocabulary, width = arrays[_WORDS].shape
    positions = len(arrays[_POSITIONS])
    if not 2 <= max_length <= positions:
        raise ValueError(
            "The length must hold [CLS] and [SEP], and not exceed the positions that the network "
            f"knows: it lies in [2, {positions}]. Received: max_length={max_length}"
        )
    return TextEncoder(
        f"minilm:{path}",
        _network(arrays),
        _tokenize(tokenizer, max_length, vocabulary, received),
        width=width,
        max_length=max_length,
        identity=lambda: {"kind": "minilm", "tokenizer": tokenizer, **arrays},
    )


@keras.saving.register_keras_serializable("keras_cdiff")
class BertEmbedding(keras.layers.Layer):
    """The sum of a token's row and its position's row.

    Args:
        vocabulary: number of tokens.
        positions: number of positions.
        width: features of a row.
    """

    def __init__(self, vocabulary: int, positions: int, width: int, **options: object):
        super().__init__(**options)
        self.vocabulary, self.positions, self.width = vocabulary, positions, width

    def build(self, input_shape: tuple) -> None:
        """Makes the two tables."""
        self.table = self.add_weight(
            shape=(self.vocabulary, self.width), initializer="zeros", name="tokens"
        )
        self.place = self.add_weight(
            shape=(self.positions, self.width), initializer="zeros", name="positions"
        )

    def call(self, tokens: keras.KerasTensor) -> keras.KerasTensor:
        """Returns (B, L, width) of tokens (B, L)."""
        return ops.take(self.table, tokens, axis=0) + self.place[: ops.shape(tokens)[1]]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the rows."""
        return (*input_shape, self.width)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        sizes = {"vocabulary": self.vocabulary, "positions": self.positions, "width": self.width}
        return {**super().get_config(), **sizes}


def _read(path: Path) -> tuple[dict[str, np.ndarray], bytes]:
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


def _tokenize(
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


def _checked(arrays: dict[str, np.ndarray], received: str) -> dict[str, np.ndarray]:
    """The arrays that the network needs, as float32."""
    depth = len({name.split(".")[2] for name in arrays if name.startswith(f"{_LAYER}.")})
    width = arrays[_WORDS].shape[-1] if _WORDS in arrays else 0
    inner = len(arrays.get(f"{_LAYER}.0.intermediate.dense.bias", ()))
    shapes = {_WORDS: (None, width), _POSITIONS: (None, width), _TYPES: (None, width)}
    shapes |= _norm("embeddings.LayerNorm", width)
    for n in range(max(depth, 1)):
        layer = f"{_LAYER}.{n}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense(f"{layer}.attention.{part}", width, width)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", width)
        shapes |= _dense(f"{layer}.intermediate.dense", width, inner)
        shapes |= _dense(f"{layer}.output.dense", inner, width)
        shapes |= _norm(f"{layer}.output.LayerNorm", width)
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


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _network(arrays: dict[str, np.ndarray]) -> keras.Model:
    """BERT's encoder with its weights, in float32 under every policy."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    present = keras.Input((None,), dtype="bool", name="present")
    vocabulary, width = arrays[_WORDS].shape
    positions = arrays[_POSITIONS] + arrays[_TYPES][0]  # one text is all of the first type
    embedding = BertEmbedding(vocabulary, len(positions), width, dtype="float32")
    x = embedding(tokens)
    embedding.set_weights([arrays[_WORDS], positions])
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
    y = attention(x, x, attention_mask=seen)
    weights = []
    for part in ("self.query", "self.key", "self.value"):
        weights.append(arrays[f"{name}.{part}.weight"].T.reshape(width, heads, _HEAD_WIDTH))
        weights.append(arrays[f"{name}.{part}.bias"].reshape(heads, _HEAD_WIDTH))
    weights.append(arrays[f"{name}.output.dense.weight"].T.reshape(heads, _HEAD_WIDTH, width))
    weights.append(arrays[f"{name}.output.dense.bias"])
    attention.set_weights(weights)
    return y


def _linear(x: keras.KerasTensor, arrays: dict[str, np.ndarray], name: str) -> keras.KerasTensor:
    kernel, bias = arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]
    dense = keras.layers.Dense(len(bias), dtype="float32", kernel_initializer="zeros")
    y = dense(x)
    dense.set_weights([kernel, bias])
    return y


def _normalised(
    x: keras.KerasTensor, arrays: dict[str, np.ndarray], name: str
) -> keras.KerasTensor:
    norm = keras.layers.LayerNormalization(epsilon=_EPSILON, dtype="float32")
    y = norm(x)
    norm.set_weights([arrays[f"{name}.weight"], arrays[f"{name}.bias"]])
    return y

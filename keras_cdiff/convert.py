"""Official checkpoints as Keras weights."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_cdiff.backbones import DiT

# The official constructor's defaults.
_DIT_DEFAULTS = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
    "learn_sigma": True,
}


class _Entry(NamedTuple):
    """Where an entry of a state dict goes: variable, official shape, change of layout."""

    variable: keras.Variable
    shape: tuple[int, ...]
    layout: Callable[[np.ndarray], np.ndarray] = np.asarray


def dit_from_official(state_dict: Mapping[str, np.ndarray], **constructor: object) -> DiT:
    """Builds a DiT with the weights of an official checkpoint (facebookresearch/DiT).

    Args:
        state_dict: official names to arrays, as `{k: v.numpy() for k, v in checkpoint.items()}`.
        **constructor: arguments of the official constructor, by their official names and with their
            official defaults, which are those of DiT-XL/2 at 256 x 256: input_size, patch_size,
            in_channels, hidden_size, depth, num_heads, mlp_ratio, class_dropout_prob, num_classes,
            learn_sigma.

    Returns:
        The network; with learn_sigma its output has the variance's channels behind the image's.

    Raises:
        ValueError: if an argument is unknown, or naming every entry that is missing, unexpected
            or of another shape.
    """
    unknown = sorted(set(constructor) - set(_DIT_DEFAULTS))
    if unknown:
        raise ValueError(
            f"The official DiT is configured by {', '.join(_DIT_DEFAULTS)}. Received: {unknown}"
        )
    official = {**_DIT_DEFAULTS, **constructor}
    if official["num_classes"] < 1:
        raise ValueError(
            "The official DiT has at least one class. "
            f"Received: num_classes={official['num_classes']}"
        )
    network = DiT(
        image_size=official["input_size"],
        patch_size=official["patch_size"],
        channels=official["in_channels"],
        width=official["hidden_size"],
        depth=official["depth"],
        num_heads=official["num_heads"],
        mlp_ratio=official["mlp_ratio"],
        num_classes=official["num_classes"],
        label_dropout=official["class_dropout_prob"],
        out_channels=official["in_channels"] * (2 if official["learn_sigma"] else 1),
    )
    entries = _dit_entries(network)
    state_dict = {name: np.asarray(value) for name, value in state_dict.items()}
    positions = keras.ops.convert_to_numpy(network.positions)[None]
    _check(state_dict, {"pos_embed": positions.shape} | {k: v.shape for k, v in entries.items()})
    if not np.allclose(state_dict["pos_embed"], positions, atol=1e-5):
        raise ValueError(
            "`pos_embed` must be the fixed sin-cos table of the official code, which a Keras DiT "
            "computes itself. Received: a table that differs by up to "
            f"{np.abs(state_dict['pos_embed'] - positions).max():g}"
        )
    for name, entry in entries.items():
        entry.variable.assign(entry.layout(state_dict[name]))
    return network


def _check(state_dict: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a ValueError unless the state dict has exactly the entries and shapes of `shapes`."""
    problems = [f"{name} is missing" for name in shapes if name not in state_dict]
    problems += [f"{name} is not expected" for name in state_dict if name not in shapes]
    problems += [
        f"{name} has the shape {state_dict[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in state_dict and state_dict[name].shape != shape
    ]
    if problems:
        raise ValueError(
            "The state dict must be that of the network that the constructor's arguments describe. "
            f"Received: {'; '.join(problems)}"
        )


def _dit_entries(network: DiT) -> dict[str, _Entry]:
    p, channels = network.patch_size, network.channels

    def patch_kernel(kernel: np.ndarray) -> np.ndarray:
        # (width, channel, row, column) -> (row column channel, width), the order of our patches.
        return kernel.transpose(2, 3, 1, 0).reshape(-1, network.width)

    entries = {
        "x_embedder.proj.weight": _Entry(
            network.patch_embedding.kernel, (network.width, channels, p, p), patch_kernel
        ),
        "x_embedder.proj.bias": _Entry(network.patch_embedding.bias, (network.width,)),
        "y_embedder.embedding_table.weight": _Entry(
            network.label_embedding.embeddings, tuple(network.label_embedding.embeddings.shape)
        ),
    }
    dense_layers = {
        "t_embedder.mlp.0": network.level_embedding.hidden,
        "t_embedder.mlp.2": network.level_embedding.projection,
        "final_layer.adaLN_modulation.1": network.final_modulation,
        "final_layer.linear": network.final_projection,
    }
    for i, block in enumerate(network.blocks):
        dense_layers[f"blocks.{i}.adaLN_modulation.1"] = block.modulation
        dense_layers[f"blocks.{i}.attn.qkv"] = block.attention.qkv
        dense_layers[f"blocks.{i}.attn.proj"] = block.attention.projection
        dense_layers[f"blocks.{i}.mlp.fc1"] = block.hidden
        dense_layers[f"blocks.{i}.mlp.fc2"] = block.projection
    for name, dense in dense_layers.items():
        entries[f"{name}.weight"] = _Entry(
            dense.kernel, tuple(dense.kernel.shape)[::-1], np.transpose
        )
        entries[f"{name}.bias"] = _Entry(dense.bias, tuple(dense.bias.shape))
    return entries

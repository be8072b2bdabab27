"""Official DiT checkpoints as Keras weights."""

from collections.abc import Mapping

import keras
import numpy as np

from keras_cdiff.backbones import DiT
from keras_cdiff.convert.state_dict import Entry, check_constructor, check_entries, dense, plain

# The official constructor's defaults.
_DEFAULTS = {
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
    official = check_constructor("DiT", _DEFAULTS, constructor)
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
    entries = _entries(network)
    state_dict = {name: np.asarray(value) for name, value in state_dict.items()}
    positions = keras.ops.convert_to_numpy(network.positions)[None]
    shapes = {"pos_embed": positions.shape} | {k: v.shape for k, v in entries.items()}
    check_entries(state_dict, shapes)
    if not np.allclose(state_dict["pos_embed"], positions, atol=1e-5):
        raise ValueError(
            "`pos_embed` must be the fixed sin-cos table of the official code, which a Keras DiT "
            "computes itself. Received: a table that differs by up to "
            f"{np.abs(state_dict['pos_embed'] - positions).max():g}"
        )
    for name, entry in entries.items():
        entry.variable.assign(entry.layout(state_dict[name]))
    return network


def _entries(network: DiT) -> dict[str, Entry]:
    p, channels = network.patch_size, network.channels

    def patch_kernel(kernel: np.ndarray) -> np.ndarray:
        # (width, channel, row, column) -> (row column channel, width), the order of our patches.
        return kernel.transpose(2, 3, 1, 0).reshape(-1, network.width)

    entries = {
        "x_embedder.proj.weight": Entry(
            network.patch_embedding.kernel, (network.width, channels, p, p), patch_kernel
        ),
        "x_embedder.proj.bias": plain(network.patch_embedding.bias),
        "y_embedder.embedding_table.weight": plain(network.label_embedding.embeddings),
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
    for name, layer in dense_layers.items():
        entries |= dense(name, layer)
    return entries

"""Checks of what a backbone is called with, by static shape and dtype."""

import keras

Tensor = keras.KerasTensor


def check_inputs(network: keras.Model, x: Tensor, level: Tensor, label: Tensor | None) -> None:
    """Raises a ValueError unless the inputs fit the network.

    Args:
        network: a backbone; its image_size, channels and num_classes decide.
        x: (B, H, W, C) float.
        level: (B,).
        label: (B,) int, or None.
    """
    expected = (network.image_size, network.image_size, network.channels)
    if len(x.shape) != 4 or tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"`x` must have the shape (batch, {', '.join(map(str, expected))}), channels last. "
            f"Received: x.shape={tuple(x.shape)}"
        )
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "`x` must be of a float dtype, scaled to [-1, 1], for instance by images / 127.5 - 1 "
            f"from uint8. Received: x.dtype={dtype}"
        )
    if len(level.shape) != 1:
        raise ValueError(
            "`level` must have the shape (batch,), one noise level for each image. "
            f"Received: level.shape={tuple(level.shape)}"
        )
    if label is None:
        return
    if network.num_classes == 0:
        raise ValueError(
            "This network takes no labels: build it with num_classes, or leave `label` out. "
            f"Received: label.shape={tuple(label.shape)}"
        )
    dtype = keras.backend.standardize_dtype(label.dtype)
    if len(label.shape) != 1 or "int" not in dtype:
        raise ValueError(
            f"`label` must be integers (batch,) in 0..{network.num_classes - 1}, or the null label "
            f"{network.num_classes}. "
            f"Received: label.shape={tuple(label.shape)}, label.dtype={dtype}"
        )

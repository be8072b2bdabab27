"""Checks of what a backbone is built with, and of what it is called with by static shape and
dtype.
"""

import keras
import numpy as np

Tensor = keras.KerasTensor


def check_inputs(
    network: keras.Model,
    x: Tensor,
    level: Tensor,
    label: Tensor | None,
    context: Tensor | None = None,
) -> None:
    """Raises a ValueError unless the inputs fit the network.

    Args:
        network: a backbone; its image_size, channels, num_classes and context_width decide.
        x: (B, H, W, C) float.
        level: (B,).
        label: (B,) int, or None.
        context: (B, L, D) float, or None.
    """
    if context is not None:
        check_context(
            tuple(context.shape),
            keras.backend.standardize_dtype(context.dtype),
            network.context_width,
        )
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


def check_context(shape: tuple, dtype: str, context_width: int) -> None:
    """Raises a ValueError unless a context of that shape and dtype fits a network.

    Args:
        shape: that of the context, None for sizes that are not known.
        dtype: its dtype.
        context_width: features of a row that the network takes; 0 if it takes no context.
    """
    if context_width == 0:
        raise ValueError(
            "This network takes no context: build a DiT with context_width, or leave `context` "
            f"out. Received: context.shape={shape}"
        )
    if len(shape) != 3 or shape[2] != context_width or "float" not in dtype:
        raise ValueError(
            f"`context` must be floats (batch, length, {context_width}), rows of zeros being "
            f"padding. Received: context.shape={shape}, context.dtype={dtype}"
        )


def check_whole(name: str, value: object, least: int) -> None:
    """Raises a ValueError unless `value` is an integer of at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}"
        )


def check_wholes(name: str, values: object, fewest: int) -> None:
    """Raises a ValueError unless `values` are integers of at least 1, and `fewest` or more."""
    sequence = isinstance(values, list | tuple) and len(values) >= fewest
    if not sequence or not all(isinstance(v, int | np.integer) and v >= 1 for v in values):
        raise ValueError(
            f"`{name}` must be a list of {fewest} or more positive integers. "
            f"Received: {name}={values!r}"
        )

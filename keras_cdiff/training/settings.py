"""Checks of single settings, and which of them are given."""

import math
from collections.abc import Container

import numpy as np


def given(**values: object) -> dict:
    """Returns the values that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}


def check_choice(name: str, value: object, choices: Container) -> None:
    """Raises a ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(str, choices))}. Received: {name}={value!r}"
        )


def check_whole(name: str, value: int, least: int, limit: float = math.inf) -> None:
    """Raises a ValueError unless a value is an integer in [least, limit)."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value < limit:
        below = f" and below {limit}" if limit < math.inf else ""
        raise ValueError(
            f"`{name}` must be an integer of at least {least}{below}. Received: {name}={value!r}"
        )

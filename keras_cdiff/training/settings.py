"""Checks of single settings, and which of them are given."""

from collections.abc import Container


def given(**values: object) -> dict:
    """Returns the values that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}


def check_choice(name: str, value: object, choices: Container) -> None:
    """Raises a ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(str, choices))}. Received: {name}={value!r}"
        )

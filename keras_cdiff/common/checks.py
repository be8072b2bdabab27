"""Checks of arguments."""

from collections.abc import Container, Sequence

import numpy as np


def is_integer(value: object) -> bool:
    """Returns whether a value is an integer of Python or NumPy; booleans are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_integer(
    name: str, value: object, least: int = 1, most: int | None = None, meaning: str = ""
) -> int:
    """Returns an integer, as `is_integer` has it, as a Python int.

    Args:
        name: what the message calls it.
        value: the value.
        least: the least that it may be.
        most: the most that it may be, or None.
        meaning: what the number is or how far it may go, for the message.

    Raises:
        ValueError: if it is no integer, or out of range.
    """
    if not is_integer(value) or value < least or (most is not None and value > most):
        reach = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        explained = f": {meaning}" if meaning else ""
        raise ValueError(
            f"`{name}` must be an integer {reach}{explained}. Received: {name}={value!r}"
        )
    return int(value)


def check_choice(name: str, value: object, choices: Container) -> None:
    """Raises a ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(str, choices))}. Received: {name}={value!r}"
        )


def parse_name(what: str, forms: Sequence[str], argument: str, value: object) -> tuple[str, str]:
    """Splits a name that has one of some forms into its kind and what follows the colon, or "".

    Args:
        what: the subject of the message, such as "A source".
        forms: "KIND", or "KIND:SOMETHING" for a kind that something must follow.
        argument: what the message calls the value.
        value: the name.

    Raises:
        ValueError: if it has none of the forms.
    """
    kind, colon, place = value.partition(":") if isinstance(value, str) else ("", "", "")
    kinds = {form.partition(":")[:2] for form in forms}
    if (kind, colon) not in kinds or bool(colon) != bool(place):
        several = f"{', '.join(forms[:-1])} or {forms[-1]}"
        raise ValueError(f"{what} is {several}. Received: {argument}={value!r}")
    return kind, place

"""What a network's arguments may be where they come from a file as well: whole numbers, and true or false."""

from __future__ import annotations

import operator
from collections.abc import Sequence

__all__ = ["flag", "whole", "whole_numbers"]


def whole_numbers(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values as ints; TypeError where something would have to be cut off or read."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError as error:
        raise TypeError(f"{name} = {values!r} must be whole numbers") from error


def whole(name: str, value: int) -> int:
    """The value as an int; TypeError for others."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} = {value!r} must be a whole number") from error


def flag(name: str, value: bool) -> bool:
    """The value; TypeError for what is not True or False, as the string "false" is not."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} = {value!r} must be True or False")
    return value

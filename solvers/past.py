"""What a multistep solver remembers: nested tuples and NamedTuples of vectors, numbers and None.

The same tree carries symbols while a step is traced, names in a plan, registers in a program and tensors in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Name", "Register", "leaves", "map_past"]


class Name(str):
    """The name of a vector, as a leaf of a past."""

    __slots__ = ()


class Register(int):
    """The number of a register, as a leaf of a past."""


def map_past(past: Any, convert: Callable[[Any], Any], kind: type) -> Any:
    """`past` with `convert` applied to its leaves of type `kind`; tuples and NamedTuples keep their shape.

    Raises TypeError for other containers, whose leaves nobody would find.
    """
    if isinstance(past, kind):
        return convert(past)
    if isinstance(past, tuple):
        values = [map_past(leaf, convert, kind) for leaf in past]
        return type(past)(*values) if hasattr(past, "_fields") else tuple(values)
    if isinstance(past, (list, dict, set)):
        raise TypeError(
            f"past holds a {type(past).__name__}; build it of tuples and NamedTuples of vectors and numbers"
        )
    return past


def leaves(past: Any, kind: type) -> Iterator[Any]:
    """The leaves of type `kind`."""
    if isinstance(past, kind):
        yield past
    elif isinstance(past, tuple):
        for leaf in past:
            yield from leaves(leaf, kind)

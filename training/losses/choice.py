"""Names that an argument may be."""

from __future__ import annotations

from collections.abc import Iterable

from halfbridge.solvers.nearest import nearest

__all__ = ["check_choice"]


def check_choice(argument: str, value: object, names: Iterable[str], other: str | None = None) -> None:
    """ValueError, with the nearest of the names, for what is none of them. other: what else the argument may be."""
    known = [*names]
    if not isinstance(value, str) or value not in known:
        said = "is unknown" if other is None else f"is no known name and not {other}"
        raise ValueError(f"{argument} = {value!r} {said}; {nearest(value, known)}")

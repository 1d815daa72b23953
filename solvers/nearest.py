"""What is said of a name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: object, known: Iterable[str]) -> str:
    """"did you mean 'heun'?" where a known name is near, else "there are ddim, heun, ...", for the end of an error."""
    names = [*known]
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, names))}"

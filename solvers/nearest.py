"""What is said of a name that nothing has, and when two names are one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["fold", "near", "nearest"]


def fold(name: object) -> str:
    """Names are one where this is: "DPM++" and "dpm_pp"."""
    return str(name).strip().lower().replace("-", "").replace("_", "").replace("+", "p")


def near(name: object, known: Iterable[str]) -> str | None:
    """The known name that is nearest, if one is near."""
    folded = {fold(one): one for one in known}
    found = difflib.get_close_matches(fold(name), folded, n=1)
    return folded[found[0]] if found else None


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of an error on an unknown name: the known name nearest to it, or all of them where none is near."""
    names = [*known]
    found = near(name, names)
    return f"there are {', '.join(map(repr, names))}" if found is None else f"did you mean {found!r}?"

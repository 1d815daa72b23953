"""Objectives: losses with all their choices made, as a trainer minimises and a run's config names them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from halfbridge.solvers.processes import Process
from halfbridge.training.objectives.base import Objective
from halfbridge.training.objectives.denoising import Denoising

__all__ = ["NAMES", "Denoising", "Objective", "make"]

NAMES: dict[str, Callable[..., Objective]] = {
    "denoising": Denoising,
}
"""The objectives by name; each is called (process, **options)."""


def make(name: str, process: Process | None = None, **options: Any) -> Objective:
    """The objective of that name: `make(**objective.config, process=objective.process)`, its "type" as `name`, is an equal.

    ValueError, with the nearest match, for a name that is not in NAMES or an option that it does not have.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"objective = {name!r} is not one of {', '.join(map(repr, NAMES))}{hint}")
    known = [option for option in inspect.signature(NAMES[name]).parameters if option != "process"]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"objective {name!r} has no option {option!r}; {hint}")
    return NAMES[name](process, **options)

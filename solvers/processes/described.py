"""Processes written down as JSON values and built from them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes.base import Process
from halfbridge.solvers.processes.diffusions import OU, Brownian
from halfbridge.solvers.processes.discrete import DiscreteVP
from halfbridge.solvers.processes.variance_exploding import EDM, VE
from halfbridge.solvers.processes.variance_preserving import VP, CosineVP, SubVP

__all__ = ["build", "describe"]

TYPES: dict[str, type[Any]] = {kind.__name__: kind for kind in (VP, CosineVP, SubVP, VE, EDM, OU, Brownian, DiscreteVP)}


def describe(process: Process) -> dict[str, Any]:
    """{"type": the class's name, **its arguments} in JSON values: `build(describe(process)) == process`, bit for bit.

    Python writes a float as the shortest decimal that reads back as the same float, so the way through json loses
    nothing. ValueError for a process of another class (LinearProcess: its two functions cannot be written down).
    """
    if not isinstance(process, Process):
        raise TypeError(f"process is a {type(process).__name__}; pass a process such as hb.VP()")
    name = type(process).__name__
    if TYPES.get(name) is not type(process):
        raise ValueError(
            f"process = {process!r} cannot be written down: only {', '.join(TYPES)} are built from numbers alone; "
            f"keep the {name} in your code and pass it again when loading: process=, or net= for a network that holds it"
        )
    values = {name: getattr(process, name) for name in _arguments(type(process))}
    return {"type": name} | {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def build(description: Mapping[str, Any]) -> Process:
    """The process that `describe` wrote; an argument that is left out has its class's default.

    ValueError for a type or an argument that there is not, with the nearest name; values are checked by the class.
    """
    if not isinstance(description, Mapping):
        raise TypeError(f"description is a {type(description).__name__}; pass what `describe` returned, a dict")
    arguments = dict(description)
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in TYPES:
        raise ValueError(f"description has type = {name!r}, which is no process; {nearest(name, TYPES)}")
    known = _arguments(TYPES[name])
    for key in arguments:
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}; {nearest(key, known)}")
    for argument in dataclasses.fields(TYPES[name]):
        if argument.init and argument.default is dataclasses.MISSING and argument.name not in arguments:
            raise ValueError(f"description of {name} lacks {argument.name!r}, which has no default")
    process: Process = TYPES[name](**arguments)
    return process


def _arguments(kind: type[Any]) -> list[str]:
    return [argument.name for argument in dataclasses.fields(kind) if argument.init]

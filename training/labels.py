"""Labels written down as JSON values and built from them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbridge.nets.labels import Labels, Scaled, Steps, scaled, steps
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes import Process
from halfbridge.solvers.processes.described import build as build_process
from halfbridge.solvers.processes.described import describe as describe_process

__all__ = ["TYPES", "build", "describe"]

TYPES: dict[str, tuple[str, ...]] = {"half_log_snr": (), "scaled": ("factor",), "steps": ("n",)}
"""The arguments of each beside "process"."""


def describe(labels: Labels | None, process: Process | None) -> dict[str, Any] | None:
    """JSON values for the labels of a network under `process`: None (the default), a process's `half_log_snr`, and what
    `nets.labels.scaled` and `steps` make. ValueError for another function, which cannot be written down."""
    if labels is None:
        return None
    if isinstance(labels, Scaled):
        return {"type": "scaled", "factor": labels.factor}
    if isinstance(labels, Steps):
        return {"type": "steps", "n": labels.n} | _other(labels.process, process)
    if getattr(labels, "__func__", None) is Process.half_log_snr:
        return {"type": "half_log_snr"} | _other(labels.__self__, process)  # type: ignore[attr-defined]
    raise ValueError(
        f"labels = {labels!r} cannot be written down; use nets.labels.scaled or steps, or process.half_log_snr, or pass "
        "labels again when loading"
    )


def build(description: Mapping[str, Any] | None, process: Process | None) -> Labels | None:
    """The labels that `describe` wrote. ValueError, with the nearest name, for a type or an argument that there is not, and for
    one that is missing."""
    if description is None:
        return None
    arguments = {name: value for name, value in description.items() if name != "type"}
    kind = description.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"labels: type = {kind!r} is unknown; {nearest(kind, TYPES)}")
    known = TYPES[kind] if kind == "scaled" else ("process", *TYPES[kind])
    for name in arguments:
        if name not in known:
            raise ValueError(f"labels: {kind!r} has no {name!r}; {nearest(name, known)}")
    for name in TYPES[kind]:
        if name not in arguments:
            raise ValueError(f"labels: {kind!r} lacks {name!r}, which has no default")
    if kind == "scaled":
        return scaled(arguments["factor"])
    of = build_process(arguments["process"]) if "process" in arguments else process
    if of is None:
        raise ValueError(f"labels: {kind!r} needs a process; describe one as 'process', or pass it")
    return of.half_log_snr if kind == "half_log_snr" else steps(of, arguments["n"])


def _other(own: Process, process: Process | None) -> dict[str, Any]:
    return {} if own == process else {"process": describe_process(own)}

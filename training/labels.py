"""Labels written down as JSON values and built from them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbridge.nets.labels import Labels, Scaled, Steps, scaled, steps
from halfbridge.solvers.processes import Process
from halfbridge.solvers.processes.described import build as build_process
from halfbridge.solvers.processes.described import describe as describe_process

__all__ = ["TYPES", "build", "describe"]

TYPES = ("half_log_snr", "scaled", "steps")


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
    """The labels that `describe` wrote. ValueError for what it does not write."""
    if description is None:
        return None
    of = build_process(description["process"]) if "process" in description else process
    match description.get("type"), description.keys() - {"type", "process"}:
        case "half_log_snr", names if not names and of is not None:
            return of.half_log_snr
        case "scaled", names if names == {"factor"}:
            return scaled(description["factor"])
        case "steps", names if names == {"n"} and of is not None:
            return steps(of, description["n"])
    raise ValueError(f"labels = {description!r} are none of {', '.join(TYPES)} with their arguments")


def _other(own: Process, process: Process | None) -> dict[str, Any]:
    return {} if own == process else {"process": describe_process(own)}

"""What a run or a saved network says of itself in JSON, and comparing that with what is there now."""

from __future__ import annotations

import importlib
import inspect
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from halfbridge.nets import build as nets
from halfbridge.nets.adapter import Labels
from halfbridge.solvers.processes import Process
from halfbridge.solvers.processes.described import build as build_process
from halfbridge.solvers.processes.described import describe as describe_process
from halfbridge.training import jsontext
from halfbridge.training import labels as label_types
from halfbridge.training.objectives import Objective

__all__ = [
    "build_process", "check_same", "describe", "describe_process", "differences", "read", "version_changes", "versions",
]  # fmt: skip

ABSENT = "(absent)"


def describe(
    net: torch.nn.Module,
    *,
    objective: Objective | None = None,
    process: Process | None = None,
    predicts: str = "noise",
    labels: Labels | None = None,
) -> dict[str, Any]:
    """{"net", "objective", "process", "predicts", "labels"}: what `training.load` needs to make the field of a network.

    Pass the objective, or, without one, the process, what the network predicts and its labels. What cannot be written down,
    such as a network or a function of the user's or a LinearProcess, leaves the name of its type: {"type": "module.Name"}; an
    objective's other choices are written beside that. The process is None where the objective learns it.
    """
    net = getattr(net, "_orig_mod", net)  # of what torch.compile returned
    if objective is not None:
        learned = getattr(objective, "schedule", None) is not None
        process, predicts = None if learned else objective.process, objective.predicts
        labels = getattr(objective, "labels", None)
        labels = labels if callable(labels) else None  # "index" and the like are in the objective's own description
    return {
        "net": _written(nets.describe, net),
        "objective": _written_objective(objective),
        "process": _written(describe_process, process),
        "predicts": predicts,
        "labels": None if process is None else _written(lambda known: label_types.describe(known, process), labels),
    }


def versions() -> dict[str, str]:
    """The versions that the bits of a run depend on, and the platform."""
    import numpy as np

    return {
        "halfbridge": importlib.import_module("halfbridge").__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def version_changes(recorded: Mapping[str, str]) -> str | None:
    """A sentence on which versions differ between those recorded and now; None if none do."""
    changes = differences(dict(recorded), versions())
    if not changes:
        return None
    told = ", ".join(f"{name} {old} (now {new})" for name, (old, new) in changes.items())
    return f"this was written with {told}: what follows may differ in rounding from a run in one piece"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{"settings.lr": (old, new), ...}: the entries of two nested configs that differ, "(absent)" where there is none.

    Values are compared as JSON has them, so that tuples equal lists; 1 equals 1.0, and NaN equals NaN.
    """
    return dict(_differences("", jsontext.loads(jsontext.dumps(old)), jsontext.loads(jsontext.dumps(new))))


def check_same(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    what: str,
    remedy: str = "pass the values that it was begun with, or begin a run in another folder",
) -> None:
    """Raise ValueError unless the configs agree, naming the first few entries that do not, with both values.

    what: whose config `old` is, e.g. "the run in runs/x".
    """
    found = differences(old, new)
    if found:
        told = [f"{key} = {_shown(b)} but was {_shown(a)}" for key, (a, b) in found.items()]
        more = f" and {len(told) - 4} more" if len(told) > 4 else ""
        raise ValueError(f"{what} has another configuration: {'; '.join(told[:4])}{more}; {remedy}")


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """The config in a JSON file, such as a run's config.json; numbers as of `jsontext`. FileNotFoundError where there is
    none, ValueError for a file that is not one."""
    path = Path(path)
    try:
        config = jsontext.loads(path.read_bytes())
    except ValueError as error:
        at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(
            f"{path} is not a config{at}: {error}; restore it, or begin a run in another folder"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a config: it holds a {type(config).__name__}, not a table of names")
    return config


def _written(describe: Callable[[Any], Any], thing: Any) -> Any:
    if thing is None:
        return None
    try:
        return describe(thing)
    except ValueError:
        return _type(thing)


def _type(thing: Any) -> dict[str, Any]:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return {"type": f"{named.__module__}.{named.__qualname__}"}


def _written_objective(objective: Objective | None) -> Any:
    """The objective's config; where it has none, its type and what it was made with, so that only functions are opaque."""
    try:
        return None if objective is None else dict(objective.config)
    except (ValueError, AttributeError):
        return _made_with(objective)


def _made_with(thing: Any) -> Any:
    """A value of JSON as it is; else the type, and those of its constructor's arguments that it keeps by their names. Process
    and labels are written elsewhere."""
    try:
        jsontext.dumps(thing)
        return thing
    except (TypeError, ValueError):
        arguments = inspect.signature(type(thing).__init__).parameters.keys() - {"process", "labels"}
        kept = sorted(arguments & getattr(thing, "__dict__", {}).keys())
        return _type(thing) | {name: _made_with(getattr(thing, name)) for name in kept}


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(f"{path}.{key}" if path else key, old.get(key, ABSENT), new.get(key, ABSENT))
    elif old != new and jsontext.dumps(old) != jsontext.dumps(new):
        yield path, (old, new)


def _shown(value: Any) -> str:
    text = value if value == ABSENT else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

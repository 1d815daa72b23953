"""The choices of an objective as JSON values: a name, or {"type": name, **parameters}."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from halfbridge.nets.adapter import Labels
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes import Process
from halfbridge.training import labels as label_types
from halfbridge.training.losses import (
    TIMES,
    WEIGHTINGS,
    Discretised,
    EDMWeight,
    IDDPMLevels,
    LogNormal,
    LogUniform,
    MinSNR,
    Sigmoid,
    VPLevels,
)
from halfbridge.training.losses.choice import check_choice

__all__ = ["DECODER", "TIME_LAWS", "WEIGHTS", "Choices", "build_labels", "check_process", "describe_labels"]


class Choices:
    """What an argument may be: names, and classes with parameters, frozen dataclasses whose fields are JSON values."""

    def __init__(self, argument: str, names: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
        self.argument, self.names, self.kinds = argument, names, kinds

    def describe(self, value: Any) -> Any:
        """JSON that `build` takes back. ValueError for what is neither a name nor of a known class: a function, say."""
        if value is None or (isinstance(value, str) and value in self.names):
            return value
        for name, kind in self.kinds.items():
            if type(value) is kind:
                return {"type": name, **{f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}}
        known = [*map(repr, self.names), *(kind.__name__ for kind in self.kinds.values())]
        raise ValueError(f"{self.argument} = {value!r} cannot be written down; only {', '.join(known)} can")

    def build(self, value: Any) -> Any:
        """The choice of a description; another value is returned as it is, a name if it is known. ValueError."""
        if isinstance(value, str):
            check_choice(self.argument, value, self.names)
        if not isinstance(value, Mapping):
            return value
        parameters = dict(value)
        name = parameters.pop("type", None)
        check_choice(f"{self.argument}: type", name, self.kinds)
        fields = [f.name for f in dataclasses.fields(self.kinds[name])]
        for parameter in parameters:
            if parameter not in fields:
                raise ValueError(f"{self.argument}: {name!r} has no {parameter!r}; {nearest(parameter, fields)}")
        return self.kinds[name](**parameters)


WEIGHTS = Choices("weighting", WEIGHTINGS, {"min_snr": MinSNR, "edm": EDMWeight, "sigmoid": Sigmoid})
TIME_LAWS = Choices(
    "times", TIMES, {"log_normal": LogNormal, "log_uniform": LogUniform, "vp": VPLevels, "iddpm": IDDPMLevels}
)
DECODER = Choices("levels", {}, {"discretised": Discretised})


def describe_labels(labels: Labels | None, process: Process | None) -> Any:
    """JSON that `build_labels` takes back; see `training.labels`, of which this is. ValueError for a function of the user's."""
    return None if labels is None else label_types.describe(labels, process)


def build_labels(labels: Any, process: Process | None, names: tuple[str, ...] = ()) -> Labels | None:
    """The labels of a description; a function, None and one of `names` are returned as they are. ValueError or TypeError for
    others."""
    if isinstance(labels, Mapping):
        return label_types.build(labels, process)
    if isinstance(labels, str) and names:
        check_choice("labels", labels, names, "a function of t")
    elif labels is not None and not callable(labels):
        raise TypeError(
            f"labels = {labels!r} is a {type(labels).__name__}; pass a function of t such as process.half_log_snr, a dict with "
            f"a type of {', '.join(map(repr, label_types.TYPES))}, or None"
        )
    known: Labels | None = labels
    return known


def check_process(process: object) -> None:
    """TypeError for what is no process."""
    if isinstance(process, type) and issubclass(process, Process):
        raise TypeError(f"process is the class {process.__name__}; pass an instance, hb.{process.__name__}(...)")
    if not isinstance(process, Process):
        raise TypeError(f"process = {process!r} is a {type(process).__name__}; pass a process such as hb.VP()")

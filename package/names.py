"""Data, networks and objectives written as text: `moons(n=1000)`, `unet(width=32)`, `denoising(weighting=min_snr)`.

See `halfbridge.solvers.calls`. (Solvers, processes and grids: `halfbridge.solvers.names`.)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from halfbridge.nets import MLP, UNet, build
from halfbridge.nets.columns import COLUMNS
from halfbridge.solvers import names
from halfbridge.solvers.calls import Call, bind, call, find, plain
from halfbridge.solvers.field import PREDICTIONS
from halfbridge.solvers.processes import Process, described
from halfbridge.training import data as data_sets
from halfbridge.training import objectives
from halfbridge.training.data import Dataset
from halfbridge.training.losses import LearnedSchedule
from halfbridge.training.objectives import Objective

__all__ = ["NETS", "OF_DATA", "OF_NETS", "OF_OBJECTIVES", "PRECONDITIONS", "check_net", "data", "net", "objective"]

NETS: dict[str, Any] = {"unet": UNet, "mlp": MLP}
PRECONDITIONS = ("none", *COLUMNS)
OF_DATA, OF_NETS, OF_OBJECTIVES = ("name_or_path",), ("shape", "classes", "process", "learned_variance"), ("process",)
"""Arguments that their text does not give, but the command."""
OWN = ("edm", "ncsn")
"""Objectives that have a process of their own unless another is asked for."""
CHAINS = ("ddpm", "ddpm_elbo", "hybrid")
"""Objectives of discrete processes."""


def data(text: str, **options: Any) -> Dataset:
    """The data set `name(argument=value, ...)` or `path(argument=value, ...)`: arguments of `training.data.load`, of which
    options are more. A path that exists is one as it stands, with its parentheses."""
    given = Call(text, {}) if text.strip() and Path(text).expanduser().exists() else call(text, "data")
    arguments = plain_arguments(bind(data_sets.load, given, "data", OF_DATA))
    more = {key: value for key, value in options.items() if value is not None}
    for option in more.keys() & arguments.keys():
        raise ValueError(f"{option} is given twice, in data {text!r} and as an option; leave one out")
    return data_sets.load(given.name, **arguments, **more)


def objective(text: str, process: str, predicts: str | None = None) -> Objective:
    """The objective `name(option=value, ...)`, of `training.objectives.NAMES`, for the process of that name.

    process "auto": the objective's own where it has one (edm, ncsn, a vdm with a schedule to learn), the chain `ddpm` for
    ddpm, ddpm_elbo and hybrid, and VP for the others. `schedule=learned(hidden=32)` is a schedule to learn, `levels=17`
    of a bound is `levels=discretised(levels=17)`.
    """
    given = call(text, "objective")
    name = find(given.name, objectives.NAMES, "objective")
    given = given._replace(name=name, arguments={key: _meant(name, key, one) for key, one in given.arguments.items()})
    options = plain_arguments(bind(objectives.NAMES[name], given, "objective", OF_OBJECTIVES))
    if predicts is not None:
        predicts = find(predicts, PREDICTIONS, "prediction")
        if options.get("predicts", predicts) != predicts:
            raise ValueError(f"predicts = {predicts!r}, but objective {text!r} says otherwise; leave one out")
        options["predicts"] = predicts
    if process == "auto":
        own = name in OWN or options.get("schedule") is not None
        made = None if own else names.process("ddpm" if name in CHAINS else "VP")
    else:
        made = names.process(process)
    return objectives.make(name, made, **options)


def net(
    text: str,
    shape: Sequence[int],
    process: Process,
    *,
    classes: int = 0,
    precondition: str = "none",
    variances: bool = False,
) -> torch.nn.Module:
    """The network `name(argument=value, ...)` for events of `shape`, untrained; "auto" is a U-Net for images, an MLP else.

    A network of time="log_snr" is given the process. precondition: "none", or the name of a column of EDM's table 1 with
    its constants, such as 'edm(sigma_data=0.3)'. variances: it returns those too, for objectives that learn them.
    """
    given, outer = check_net(text, precondition)
    name = ("unet" if len(shape) == 3 else "mlp") if given.name == "auto" else given.name
    if name == "unet" and len(shape) != 3:
        raise ValueError(f"net = 'unet' is for images, and an example has shape {tuple(shape)}; pass mlp")
    kind = NETS[name]
    arguments = plain_arguments(bind(kind, given._replace(name=name), "net", OF_NETS))
    if variances:
        if outer.name != "none":
            raise ValueError(
                f"precondition {outer.name!r} returns data alone, and the objective learns variances; pass none"
            )
        if "learned_variance" not in inspect.signature(kind).parameters:
            raise ValueError(f"net {name!r} returns no variances, which the objective learns; pass another objective")
        arguments["learned_variance"] = True
    written = {"type": kind.__name__, "shape": list(shape), "classes": classes, **arguments}
    if arguments.get("time") == "log_snr":
        written.setdefault("process", described.describe(process))
    if outer.name == "none":
        return build.build(written)
    wrapped = {"type": "Precondition", "net": written, "kind": outer.name, "process": described.describe(process)}
    return build.build(wrapped | outer.arguments)


def check_net(text: str, precondition: str) -> tuple[Call, Call]:
    """The network's call and its precondition's, with names that there are. ValueError for others."""
    given = call(text, "net")
    given = given._replace(name=find(given.name, ("auto", *NETS), "net"))
    for argument in OF_NETS:
        if argument in given.arguments:
            raise ValueError(f"net {text!r}: {argument} follows from data, process and objective; leave it out")
    outer = call(precondition, "precondition")
    outer = outer._replace(name=find(outer.name, PRECONDITIONS, "precondition"))
    if outer.name == "none":
        return given, outer
    return given, Call(outer.name, bind(COLUMNS[outer.name], outer, "precondition"))


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in arguments.items()}


def _meant(objective: str, option: str, value: Any) -> Any:
    """What is written shorter than a description has it."""
    if option == "schedule" and value is not None:
        given = (
            Call(value, {}) if isinstance(value, str) else Call("learned", value) if isinstance(value, dict) else value
        )
        if not isinstance(given, Call) or given.name != "learned":
            raise ValueError(f"objective {objective!r}: schedule = {value!r} is not learned, or learned(hidden=32)")
        return bind(LearnedSchedule, given, "schedule")
    if option == "levels" and objective != "ncsn" and isinstance(value, int):
        return Call("discretised", {"levels": value})
    return value

"""Data, networks and objectives written as text: `moons(n=1000)`, `unet(width=32)`, `denoising(weighting=min_snr)`.

Arguments are named. Values are Python literals; a bare word is a string, and a word with arguments, as in
weighting=min_snr(gamma=3), is the mapping {"type": "min_snr", "gamma": 3} that descriptions are made of.
(Solvers, processes and grids: `halfbridge.solvers.names`.)
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfbridge.nets import build
from halfbridge.solvers import names
from halfbridge.solvers.processes import Process, described
from halfbridge.training import data as data_sets
from halfbridge.training import objectives
from halfbridge.training.data import Dataset
from halfbridge.training.objectives import Objective

__all__ = ["NETS", "PRECONDITIONS", "call", "data", "net", "objective"]

NETS = {"unet": "UNet", "mlp": "MLP"}
PRECONDITIONS = ("none", "edm", "vp", "ve", "iddpm")
OWN = ("edm", "ncsn")
"""Objectives that have a process of their own unless another is asked for."""
CHAINS = ("ddpm", "ddpm_elbo", "hybrid")
"""Objectives of discrete processes."""


class Call(NamedTuple):
    """A name and its arguments."""

    name: str
    arguments: dict[str, Any]


def call(text: str, what: str) -> Call:
    """`name`, or `name(argument=value, ...)`. what: the kind of thing, for errors, which are ValueErrors."""
    text = text.strip()
    if not text.endswith(")"):
        return Call(text, {})
    opened = (k for k, letter in enumerate(text) if letter == "(")
    name, tree = next(((text[:k].strip(), tree) for k in opened if (tree := _call(text[k:]))), ("", None))
    if tree is None:
        raise ValueError(f"{what} {text!r} cannot be read; write 'name' or 'name(argument=value, ...)'")
    if tree.args or any(keyword.arg is None for keyword in tree.keywords):
        raise ValueError(f"{what} {text!r} has an argument without a name; write 'name(argument=value, ...)'")
    return Call(name, _arguments(tree, what))


def data(text: str, **options: Any) -> Dataset:
    """The data set `name(argument=value, ...)` or `path(argument=value, ...)`: arguments of `training.data.load`, of which
    options are more. A path that exists is one as it stands, with its parentheses."""
    name, arguments = Call(text, {}) if Path(text).expanduser().exists() else call(text, "data")
    known = [*inspect.signature(data_sets.load).parameters][1:]
    for option in arguments:
        if option not in known:
            raise ValueError(f"data {name!r} has no argument {option!r}{_near(option, known)}")
    given = {key: value for key, value in options.items() if value is not None}
    for option in given.keys() & arguments.keys():
        raise ValueError(f"{option} is given twice, in data {text!r} and as an option; leave one out")
    return data_sets.load(name, **arguments, **given)


def objective(text: str, process: str, predicts: str | None = None) -> Objective:
    """The objective `name(option=value, ...)`, of `training.objectives.NAMES`, for the process of that name.

    process "auto": the objective's own where it has one (edm, ncsn, a vdm with a schedule to learn), the chain `ddpm` for
    ddpm, ddpm_elbo and hybrid, and VP for the others.
    """
    name, options = call(text, "objective")
    if predicts is not None:
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
    text: str, shape: Sequence[int], process: Process, *, classes: int = 0, precondition: str = "none"
) -> torch.nn.Module:
    """The network `name(argument=value, ...)` for events of `shape`, untrained; "auto" is a U-Net for images, an MLP else.

    A network of time="log_snr" is given the process. precondition: "none", or the name of a column of EDM's table 1 with
    its constants, such as 'edm(sigma_data=0.3)'.
    """
    name, arguments = call(text, "net")
    if name == "auto":
        name = "unet" if len(shape) == 3 else "mlp"
    if name.lower() not in NETS:
        raise ValueError(f"there is no net {name!r}{_near(name, NETS)}")
    for argument in ("shape", "classes"):
        if argument in arguments:
            raise ValueError(f"net {text!r}: {argument} follows from the data; leave it out")
    if name.lower() == "unet" and len(shape) != 3:
        raise ValueError(f"net = 'unet' is for images, and an example has shape {tuple(shape)}; pass mlp")
    written = {"type": NETS[name.lower()], "shape": list(shape), "classes": classes, **arguments}
    if arguments.get("time") == "log_snr":
        written.setdefault("process", described.describe(process))
    kind, constants = call(precondition, "precondition")
    if kind not in PRECONDITIONS:
        raise ValueError(f"there is no precondition {kind!r}{_near(kind, PRECONDITIONS)}")
    if kind == "none":
        return build.build(written)
    outer = {"type": "Precondition", "net": written, "kind": kind, "process": described.describe(process)}
    return build.build(outer | constants)


def _call(arguments: str) -> ast.Call | None:
    """`f(...)`; None where the parentheses do not begin and end the text as one pair."""
    try:
        tree = ast.parse(f"f{arguments}", mode="eval").body
    except SyntaxError:
        return None
    return tree if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) else None


def _arguments(tree: ast.Call, what: str) -> dict[str, Any]:
    return {str(keyword.arg): _value(keyword.value, what) for keyword in tree.keywords}


def _value(node: ast.expr, what: str) -> Any:
    if isinstance(node, ast.Name):
        return float("inf") if node.id == "inf" else node.id
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(part, what) for part in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        return {"type": node.func.id, **_arguments(node, what)}
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            f"{what}: {ast.unparse(node)!r} is no value; write a number, a list, a word or a quoted string"
        ) from None


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name.lower(), [*known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"

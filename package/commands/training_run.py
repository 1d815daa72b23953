"""What the commands of `halfbridge train` have in common: flags of the settings and of the run, its seed, its pace."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import torch

from halfbridge.commands.machine import add_machine
from halfbridge.parser import Parser, number, numbers, one_or_several, path, switch, whole
from halfbridge.training.folder import Resume
from halfbridge.training.settings import Settings

__all__ = [
    "RESUME", "Pace", "add_run", "add_settings", "kind", "need", "seeded", "settings", "shows_progress",
    "told_by_flags",
]  # fmt: skip

KINDS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (whole, "N"),
    float: (number, "X"),
    str: (str, "NAME"),
    tuple[float, float]: (numbers, "X,X"),
    float | tuple[float, ...]: (one_or_several, "X[,X...]"),
}
RESUME: dict[str, Resume] = {"yes": True, "no": False, "auto": "auto"}


def add_settings(parser: Parser, title: str = "training", without: Collection[str] = ()) -> None:
    """A flag for each field of Settings, but for those that have no part in this training."""
    group, hints = parser.add_argument_group(title), get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        if field.name in without:
            continue
        flag, text = f"--{field.name.replace('_', '-')}", str(field.metadata["help"]).replace("%", "%%")
        if hints[field.name] is bool:
            switch(group, flag, text, bool(field.default))
        else:
            made, metavar = KINDS[hints[field.name]]
            group.add_argument(flag, type=made, default=_written(field.default), metavar=metavar, help=text)


def settings(options: argparse.Namespace) -> Settings:
    """The Settings of the flags."""
    fields = (field.name for field in dataclasses.fields(Settings))
    return Settings(**{name: getattr(options, name) for name in fields if hasattr(options, name)})


def add_run(group: argparse._ActionsContainer) -> None:
    """--out, --resume, the machine, --progress and --quiet."""
    group.add_argument(
        "--out", type=path, metavar="FOLDER", help="folder of the run, new or empty (required, no default)"
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        default="no",
        choices=["yes", "auto", "no"],
        help="go on with the run in --out; auto: begin it where there is none",
    )
    add_machine(group)
    switch(group, "--progress", "show a bar with loss and speed (default: on a terminal)", None)
    switch(group, "--quiet", "print errors only, and no bar")


def shows_progress(options: argparse.Namespace) -> bool:
    """Whether there is to be a bar: --progress, unless --quiet, where there is that."""
    return not getattr(options, "quiet", False) and (
        sys.stderr.isatty() if options.progress is None else bool(options.progress)
    )


def need(options: argparse.Namespace, *names: str) -> None:
    """ValueError for the first of the options that was not given."""
    for name in names:
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing; see {options.parser.prog} --help")


@contextmanager
def told_by_flags(options: argparse.Namespace, **flags: str) -> Iterator[None]:
    """Errors name the flags, --cache-paths, where the library names its arguments, `cache_paths`. flags: of arguments that are
    called otherwise."""
    known = {name: name for name in vars(options)} | flags

    def flag(found: re.Match[str]) -> str:
        name = known.get(found[1] or found[2])
        return found[0] if name is None else f"--{name.replace('_', '-')}"

    try:
        yield
    except (ValueError, TypeError) as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (re.sub(r"`(\w+)`|'(\w+)'(?= = )", flag, error.args[0]), *error.args[1:])
        raise


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Starting values follow from the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def kind(net: Any) -> str:
    """What a network is called."""
    return str(type(getattr(net, "net", net)).__name__)


class Pace:
    """The last state that training told of, and how fast it got there."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.first = self.last = self.examples = 0

    def __call__(self, state: Any) -> None:
        self.first = self.first or state.step
        self.last, self.examples = state.step, state.examples

    def summary(self, losses: torch.Tensor) -> str:
        if not self.last:
            return "nothing was left to do"
        seconds, steps = time.perf_counter() - self.begun, self.last - self.first + 1
        speed = self.examples / self.last * steps / seconds
        recent = losses[-min(100, len(losses)) :]
        return (
            f"loss {recent.mean().item():.4g} (of the last {len(recent)} steps), {steps} steps in {seconds:.1f} s, "
            f"{speed:.3g} examples/s"
        )


def _written(value: Any) -> str:
    """A default as a flag would have it."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return "inf" if value == math.inf else str(value)

"""Command lines: errors of one line that name the nearest known word, help with every default, and the kinds of values."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from halfbridge.solvers.nearest import near, nearest

__all__ = [
    "Commands",
    "Parser",
    "check_range",
    "count",
    "fail",
    "number",
    "numbers",
    "one_or_several",
    "parts",
    "path",
    "switch",
    "whole",
]

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]
else:
    Commands = Any


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and the nearest choice or option for an unknown one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Help, **options})
        self.expand: Callable[[list[str]], list[str]] = list
        """What arguments stand for."""
        self._negative_number_matcher = re.compile(
            r"-(\d|\.\d|inf)[\d.,eEinf+-]*$"
        )  # so that -1,1 is a value, not an option

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            choices = re.findall(r"[\w-]+", unknown[2])
            option = message[: unknown.start()] if "argument -" in message else ""
            message = f"{option}there is no {unknown[1]!r}; {nearest(unknown[1], choices)}"
        raise SystemExit(fail(f"{message} (see {self.prog} --help)"))

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but words that are not known are an error of the command they were given to."""
        parsed, unknown = super().parse_known_args(self.expand(sys.argv[1:] if args is None else list(args)), namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            options = [o for action in self._actions for o in action.option_strings]
            found = near(word, options)
            hint = "" if found is None else f"; did you mean {found!r}?"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, []


class _Help(argparse.RawDescriptionHelpFormatter):
    """Every option says its default, or that it has none; descriptions and examples keep their lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(110, shutil.get_terminal_size().columns - 2))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        said = "default" in text or action.default in (None, argparse.SUPPRESS)
        return text if said or not action.option_strings else f"{text} (default: {_shown(action.default)})"


def _shown(value: Any) -> str:
    shown = {True: "yes", False: "no"}.get(value) if isinstance(value, bool) else None
    return (shown or str(value)).replace("%", "%%")


def fail(message: str, status: int = 2) -> int:
    """Print an error on one line, and return the exit status."""
    process = os.environ.get("RANK", "0")
    where = "" if process == "0" else f" in process {process}"
    print(f"halfbridge: error{where}: {' '.join(message.split())}", file=sys.stderr)
    return status


def path(text: str) -> str:
    """A file or folder, ~ being the home folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return str(Path(text).expanduser())


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def count(text: str) -> int:
    found = whole(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return found


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def parts(text: str) -> list[str]:
    """What is between commas; one at the end, as in '0.9,', makes a list of one."""
    return [part.strip() for part in text.strip().removesuffix(",").split(",")]


def numbers(text: str) -> tuple[float, ...]:
    return tuple(map(number, parts(text)))


def one_or_several(text: str) -> float | tuple[float, ...]:
    """A number, or, with a comma, a tuple."""
    return numbers(text) if "," in text else number(text)


def check_range(found: tuple[float, ...]) -> None:
    """ValueError for a --range that is none."""
    if len(found) != 2 or not found[0] < found[1]:
        raise ValueError(f"--range {found} must be two numbers, the lower first")


def switch(group: argparse._ActionsContainer, name: str, text: str, default: bool | None = False) -> None:
    """--name and --no-name, of which a config file says true and false."""
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)

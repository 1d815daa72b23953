"""The `halfbridge` command. Errors are one line on stderr and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

import halfbridge as hb
from halfbridge.commands import bench, certify, demo, likelihood, sample, table, train, translate
from halfbridge.parser import Parser, fail
from halfbridge.training.workers import FirstFailed

__all__ = ["main", "parser"]

COMMANDS = (demo, table, certify, bench, train, sample, translate, likelihood)

EXPECTED = (ValueError, TypeError, ImportError, OSError, ArithmeticError, torch.OutOfMemoryError)
"""What the package raises for bad input; anything else is a bug of ours and keeps its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # the reader (head, less) has gone: say nothing, and keep Python from trying to flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as interrupt:
        return fail(str(interrupt) or "interrupted", 130)
    except FirstFailed:
        return 2  # and process 0 says why
    except EXPECTED as error:
        return fail(str(error) or type(error).__name__)


def parser() -> Parser:
    """The parser of all commands."""
    made = Parser(
        prog="halfbridge", description="SDE and ODE solvers for score-based generative models and Schrödinger bridges."
    )
    made.add_argument("--version", action="version", version=f"halfbridge {hb.__version__}")
    commands = made.add_subparsers(required=True, metavar="command", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return made

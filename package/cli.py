"""The `halfbridge` command: demo, table, certify, bench. Errors are one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import halfbridge as hb
from halfbridge.solvers import names

__all__ = ["main"]

EXPECTED = (ValueError, TypeError, ImportError, OSError, ArithmeticError)
"""What the package raises for bad input; anything else is a bug of ours and keeps its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # the reader (head, less) has gone: say nothing, and keep Python from trying to flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except EXPECTED as error:
        return _fail(str(error) or type(error).__name__)


def _demo(options: argparse.Namespace) -> int:
    from halfbridge.demo import FULL, QUICK, run

    run(options.out, settings=QUICK if options.quick else FULL, seed=options.seed)
    return 0


def _table(options: argparse.Namespace) -> int:
    process = names.process(options.process)
    grid = names.grid(options.grid)(process, options.steps, t_end=options.t_end)
    plan = hb.plan(names.solver(options.solver), process, grid, predicts=options.predicts)
    print(json.dumps(plan.to_dict(), indent=2) if options.json else plan)
    return 0


def _certify(options: argparse.Namespace) -> int:
    certificate = hb.certify(names.load_solver(options.solver))
    print(certificate)
    if options.plot:
        certificate.plot(options.plot)
        print(f"wrote {options.plot}")
    return 0 if certificate.passed else 1


def _bench(options: argparse.Namespace) -> int:
    folder = next(
        (f for f in (Path.cwd(), Path(hb.kernels.__file__).parents[1]) if (f / "benchmarks/kernels.py").exists()), None
    )
    if folder is None:
        raise ImportError("the benchmarks are not installed with the package; run this in a checkout of its source")
    sys.path.insert(0, str(folder))
    importlib.import_module("benchmarks.kernels").main(options.arguments)
    return 0


def _fail(message: str, status: int = 2) -> int:
    print(f"halfbridge: error: {' '.join(message.split())}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and the nearest choice for an unknown one."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            choices = re.findall(r"[\w-]+", unknown[2])
            near = difflib.get_close_matches(unknown[1], choices, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(choices)}"
            message = f"there is no {unknown[1]!r}; {hint}"
        raise SystemExit(_fail(f"{message} (see {self.prog} --help)"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="halfbridge", description="SDE and ODE solvers for score-based generative models.")
    parser.add_argument("--version", action="version", version=f"halfbridge {hb.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    demo = commands.add_parser("demo", help="sample 8x8 digits with every core solver: tables and pictures")
    demo.add_argument("--out", default="out/demo", help="folder to write to (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="few images, samples and training steps")
    demo.add_argument("--seed", type=int, default=0, help="of the starts, the noise and the training")
    demo.set_defaults(run=_demo)

    table = commands.add_parser(
        "table",
        help="print a solver's plan: every coefficient of every step",
        description="Print a run's plan. Names take arguments: --solver 'DDIM(eta=0.5)' --process 'VP(beta_max=15)'.",
        epilog=f"Solvers: {', '.join(names.SOLVERS)}. Processes: {', '.join(names.PROCESSES)}.",
    )
    table.add_argument("--solver", required=True, help="e.g. dpm3, heun, 'Ancestral(variance=\"transition\")'")
    table.add_argument("--process", default="VP", help="e.g. vp, edm, ddpm (default: %(default)s)")
    table.add_argument("--grid", default="half_log_snr", help=f"{', '.join(names.GRIDS)} (default: %(default)s)")
    table.add_argument("--steps", type=int, default=10, help="steps of the grid (default: %(default)s)")
    table.add_argument("--t-end", type=float, default=None, help="last time (default: the process's t_min)")
    table.add_argument("--predicts", default="noise", help="what the field predicts (default: %(default)s)")
    table.add_argument("--json", action="store_true", help="as JSON, coefficients in full")
    table.set_defaults(run=_table)

    certify = commands.add_parser(
        "certify",
        help="measure a solver's order against exact answers; exit status 1 if it falls short",
        description="Measure the order of a solver, ours or your module:Class, and compare it with what it declares.",
    )
    certify.add_argument("solver", metavar="NAME|module:Class", help="e.g. dpm3, 'DDIM(eta=1)', my_solvers:Midpoint")
    certify.add_argument("--plot", metavar="FILE.png", help="also draw the errors against the number of steps")
    certify.set_defaults(run=_certify)

    bench = commands.add_parser(
        "bench",
        help="time the kernels against eager torch and the memory's bandwidth (in a checkout of the source)",
        description="Time the kernels, as python -m benchmarks.kernels does.",
    )
    bench.add_argument("what", choices=["kernels"])
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="of benchmarks.kernels: see bench kernels --help")
    bench.set_defaults(run=_bench)
    return parser

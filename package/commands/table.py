"""`halfbridge table`."""

from __future__ import annotations

import argparse
import json

from halfbridge import listings
from halfbridge.parser import Commands, number, whole
from halfbridge.solvers import names
from halfbridge.solvers.plan import plan

__all__ = ["add"]


def add(commands: Commands) -> None:
    table = commands.add_parser(
        "table",
        help="print a solver's plan: every coefficient of every step",
        description="Print a run's plan. Names take arguments: --solver 'DDIM(eta=0.5)' --process 'VP(beta_max=15)'.",
        epilog=f"names:\n{listings.solvers()}\n{listings.processes()}\n{listings.grids()}",
    )
    table.add_argument(
        "--solver", required=True, metavar="NAME", help="e.g. dpm3, heun, 'Ancestral(variance=\"transition\")'"
    )
    table.add_argument("--process", default="VP", metavar="NAME", help="e.g. vp, edm, ddpm")
    table.add_argument("--grid", default="half_log_snr", metavar="NAME", help=", ".join(names.GRIDS))
    table.add_argument("--steps", type=whole, default=10, metavar="N", help="steps of the grid")
    table.add_argument("--t-end", type=number, metavar="T", help="last time (default: the process's t_min)")
    table.add_argument(
        "--predicts", default="noise", metavar="WHAT", help="what the field predicts: noise, score, data, velocity"
    )
    table.add_argument("--json", action="store_true", help="as JSON, coefficients in full")
    table.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    process = names.process(options.process)
    grid = names.grid(options.grid)(process, options.steps, t_end=options.t_end)
    made = plan(names.solver(options.solver), process, grid, predicts=options.predicts)
    print(json.dumps(made.to_dict(), indent=2) if options.json else made)
    return 0

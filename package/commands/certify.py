"""`halfbridge certify`."""

from __future__ import annotations

import argparse

from halfbridge import listings
from halfbridge.parser import Commands
from halfbridge.solvers import names
from halfbridge.solvers.reference.certify import certify

__all__ = ["add"]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "certify",
        help="measure a solver's order against exact answers; exit status 1 if it falls short",
        description="Measure the order of a solver, ours or your module:Class, and compare it with what it declares.",
        epilog=f"names:\n{listings.solvers()}",
    )
    parser.add_argument("solver", metavar="NAME|module:Class", help="e.g. dpm3, 'DDIM(eta=1)', my_solvers:Midpoint")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw the errors against the number of steps")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    certificate = certify(names.load_solver(options.solver))
    print(certificate)
    if options.plot:
        certificate.plot(options.plot)
        print(f"wrote {options.plot}")
    return 0 if certificate.passed else 1

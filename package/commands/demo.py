"""`halfbridge demo`."""

from __future__ import annotations

import argparse

from halfbridge.parser import Commands, whole

__all__ = ["add"]


def add(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="sample 8x8 digits with every core solver: tables and pictures")
    demo.add_argument("--out", default="out/demo", metavar="FOLDER", help="folder to write to")
    demo.add_argument("--quick", action="store_true", help="few images, samples and training steps")
    demo.add_argument("--seed", type=whole, default=0, metavar="N", help="of the starts, the noise and the training")
    demo.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from halfbridge.demo import FULL, QUICK, run

    run(options.out, settings=QUICK if options.quick else FULL, seed=options.seed)
    return 0

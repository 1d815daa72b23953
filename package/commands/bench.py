"""`halfbridge bench`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from halfbridge import kernels
from halfbridge.parser import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="time the kernels against eager torch and the memory's bandwidth (in a checkout of the source)",
        description="Time the kernels, as python -m benchmarks.kernels does.",
    )
    bench.add_argument("what", choices=["kernels"])
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="of benchmarks.kernels: see bench kernels --help")
    bench.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    folders = (Path.cwd(), Path(kernels.__file__).parents[1])
    folder = next((f for f in folders if (f / "benchmarks/kernels.py").exists()), None)
    if folder is None:
        raise ImportError("the benchmarks are not installed with the package; run this in a checkout of its source")
    sys.path.insert(0, str(folder))
    importlib.import_module("benchmarks.kernels").main(options.arguments)
    return 0

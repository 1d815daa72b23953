"""States carried along a bridge, many at a time, and where they are written."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbridge import sample_files
from halfbridge.commands.bridge_route import Route
from halfbridge.commands.bridge_run import BridgeRun
from halfbridge.commands.machine import bar
from halfbridge.commands.training_run import shows_progress
from halfbridge.training.bridge.ends import End
from halfbridge.training.sampling import in_chunks
from halfbridge.training.workers import Workers

__all__ = ["carry", "target"]

COLUMNS = 16
"""Samples side by side in a picture of paths."""


def carry(
    options: argparse.Namespace,
    run: BridgeRun,
    route: Route,
    begin: Callable[[int, int], Tensor],
    n: int,
    workers: Workers,
    say: Callable[[str], None],
    *,
    first: int = 0,
    data: Tensor | None = None,
    paths: bool = False,
) -> None:
    """Carry the states begin(start, stop), of which n are to be had from `first` on, and write options.out.

    data: to be drawn beside points. paths: whether a picture of images has what they came from above them.
    """

    def make(start: int, stop: int) -> Tensor:
        x = begin(start, stop)
        return torch.cat([x[None], route.go(x, options.seed, start)]).transpose(0, 1)

    begun, progress = time.perf_counter(), bar(n, workers.first and shows_progress(options))
    states = in_chunks(
        make, n, (len(route.kept) + 2, *run.shape), first=first, chunk=options.batch, workers=workers, dtype=run.dtype,
        device=run.device, progress=progress.update,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    progress.close()
    facts = {
        "run": run.folder, "step": run.step, "to": options.to, "solver": options.solver or "chain", "times": route.grid,
        "seed": options.seed, "first": first,
    }  # fmt: skip
    out, samples = Path(options.out), states[:, -1]
    more = {"origins": states[:, 0]}
    if route.kept:
        kept = torch.tensor(route.kept, dtype=torch.float64)
        more |= {"times": kept, "trajectory": states[:, 1:-1].transpose(0, 1)}
    picture: dict[str, Any] = {"data": data, "range": options.range, "columns": None}
    drawn = samples
    if out.suffix == ".png" and samples.ndim == 4 and (paths or route.kept):
        drawn, picture["columns"] = _strips(states)
    workers.once(lambda: sample_files.write(out, drawn, None, facts, more=more, **picture))
    say(f"{n} samples by {route.name}; {seconds:.2f} s, {n / seconds:.3g} samples/s")
    say(f"wrote {out}")


def target(run: BridgeRun, options: argparse.Namespace, n: int, say: Callable[[str], None]) -> Tensor | None:
    """Samples of the law that a picture of points is drawn over; None where there are none to be had, or none are wanted."""
    if Path(options.out).suffix != ".png" or len(run.shape) == 3:
        return None
    try:
        law: End = run.law(options.to, options.seed)[0]
    except (ValueError, OSError, ImportError) as error:
        say(f"the data are not drawn: {error}")
        return None
    return law.sample(n, options.seed, 1 << 38)


def _strips(states: Tensor) -> tuple[Tensor, int]:
    """Images (n, rows, channels, height, width) in the order of a grid, and its columns, `COLUMNS` at most: the states of each
    sample one below the other."""
    width = math.ceil(len(states) / math.ceil(len(states) / COLUMNS))
    missing = -len(states) % width
    blank = states.new_full((missing, *states.shape[1:]), float("nan"))
    blocks = torch.cat([states, blank]).reshape(-1, width, *states.shape[1:])
    return blocks.transpose(1, 2).flatten(0, 2), width

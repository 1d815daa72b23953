"""A trained network as the commands that use one take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from halfbridge.parser import Parser, number, parts, path
from halfbridge.solvers import names
from halfbridge.solvers.algebra import NotLinear
from halfbridge.solvers.plan import plan
from halfbridge.solvers.solver import Solver
from halfbridge.training import saved
from halfbridge.training.saved import Saved

__all__ = ["add_run", "classes_of", "dtype_of", "evaluations", "introduce", "load", "make_grid", "shape_of"]


def add_run(parser: Parser) -> None:
    """The positional argument `folder`, and --average."""
    parser.add_argument(
        "folder", type=path, metavar="RUN", help="a run's folder, or a .safetensors file of one network"
    )
    parser.add_argument(
        "--average",
        type=number,
        metavar="DECAY",
        help="which averaged network, by its decay; 0: the weights of the last step (default: the run's first)",
    )


def load(run: str, average: float | None, device: torch.device) -> Saved:
    """The network, on the device."""
    found = saved.load(run, average=average)
    learned: object = found.objective
    for module in (found.net, learned):
        if isinstance(module, torch.nn.Module):
            module.to(device)
    return found


def introduce(say: Callable[[str], None], run: str, found: Saved) -> None:
    net: Any = found.net
    average = {None: "", 0.0: ", weights of the last step"}.get(found.average, f", average {found.average}")
    inner = type(getattr(net, "net", net)).__name__
    say(f"{run}: {inner} of {net.parameter_count:,} parameters, step {found.step}{average}; {found.process!r}")


def shape_of(found: Saved) -> tuple[int, ...]:
    """Of one example."""
    net: Any = found.net
    return tuple(getattr(net, "net", net).shape)


def dtype_of(found: Saved) -> torch.dtype:
    return next(found.net.parameters()).dtype


def classes_of(text: str, count: int) -> list[int]:
    """The classes that `text` lists, such as 3, 0-9 or 1,4,7-9; "none" is none. `count`: how many the network knows."""
    if text == "none":
        return []
    if not count:
        raise ValueError(f"--classes {text}: the network was trained without classes; leave it out")
    found: list[int] = []
    for part in parts(text):
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ValueError(f"--classes {text}: {part!r} is no class; write numbers and ranges such as 0-9 or 1,4,7")
        last = int(high if dash else low)
        if not int(low) <= last < count:
            raise ValueError(f"--classes {text}: {part!r} is not within the network's classes, 0-{count - 1}")
        found += range(int(low), last + 1)
    return found


def make_grid(
    found: Saved, solver: Solver, name: str, steps: int | None, budget: int | None, t_end: float | None
) -> Any:
    """The times: of `steps` steps, or of as many as `budget` evaluations allow; "levels" are those that ncsn trained at."""
    if name == "levels":
        times = getattr(found.objective, "times", None)
        if not isinstance(times, torch.Tensor):
            raise ValueError(
                "--grid levels: only the objective ncsn has levels; pass another grid, such as half_log_snr"
            )
        if (steps, budget, t_end) != (None, None, None):
            raise ValueError("--grid levels has its own steps; leave --steps, --evaluations and --t-end out")
        return times.cpu().numpy()
    make = names.grid(name)
    if steps is not None and budget is not None:
        raise ValueError(f"--steps {steps} and --evaluations {budget} exclude each other; pass one")

    def cost(n: int) -> int:
        return evaluations(found, solver, make(found.process, n, t_end=t_end))

    if budget is None:
        return make(found.process, 10 if steps is None else steps, t_end=t_end)
    n = budget // solver.evals_per_step
    while cost(n + 1) <= budget:  # a last step may cost less
        n += 1
    if not n:
        raise ValueError(f"--evaluations {budget}: one step of {solver!r} takes {cost(1)}; pass as many at least")
    return make(found.process, n, t_end=t_end)


def evaluations(found: Saved, solver: Solver, grid: Any) -> int:
    """Of the network, for a sample."""
    try:
        return plan(solver, found.process, grid, predicts=found.predicts).nfe
    except NotLinear:
        return (len(grid) - 1) * solver.evals_per_step

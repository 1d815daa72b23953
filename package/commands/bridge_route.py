"""The ways from one end of a bridge to the other: its chain, or a solver along its SDEs or its probability flow."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from halfbridge.parser import Parser, numbers, switch
from halfbridge.solvers import names
from halfbridge.solvers.field import Field
from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.run import solve
from halfbridge.solvers.solver import Solver
from halfbridge.training.bridge import Bridge

__all__ = ["CHAIN", "Route", "add_route", "check_solver", "find_route"]

CHAIN = "chain"
STEPS = 20


class Route(NamedTuple):
    """A way along a bridge.

    name: for people. grid: the times of its steps, on the way. kept: those at which the state is kept, on the way.
    go(x, seed, first) -> (len(kept) + 1, batch, *shape): the states kept and the last one, of the paths first, first + 1, ...
    """

    name: str
    grid: list[float]
    kept: list[float]
    go: Callable[[Tensor, int, int], Tensor]


def add_route(parser: Parser) -> None:
    """--times and --last-noise."""
    parser.add_argument(
        "--times",
        type=numbers,
        metavar="X,X,...",
        help="of a bridge: keep the states at these times too, any between 0 and T (default: the last alone)",
    )
    switch(parser, "--last-noise", "of a bridge's chain: the noise of its last step (default: yes)", None)


def check_solver(text: str | None) -> None:
    """ValueError for no solver's name."""
    if text not in (None, CHAIN):
        names.load_solver(str(text))


def find_route(options: argparse.Namespace, bridge: Bridge, to: str) -> Route:
    """The way to that end which options ask for: solver, steps, grid, t_end, times, last_noise."""
    T = bridge.reference.process.T
    kept = sorted(options.times or (), reverse=to == "start")
    for k, t in enumerate(kept):
        if t in kept[:k]:
            raise ValueError(f"--times: {t:g} is there twice")
        if not 0 <= t <= T:
            raise ValueError(f"--times: {t:g} lies outside the bridge, which is from 0 to T = {T:g}")
    if options.solver in (None, CHAIN):
        return _chain(options, bridge, to, kept)
    if options.last_noise is not None:
        raise ValueError(f"--{'' if options.last_noise else 'no-'}last-noise is of the chain's last step; leave it out")
    return _solver(options, bridge, to, kept)


def _chain(options: argparse.Namespace, bridge: Bridge, to: str, kept: list[float]) -> Route:
    for name in ("steps", "grid", "t_end"):
        value = getattr(options, name)
        if value is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} {value}: the chain has its own times; leave it out, or pass --solver heun (the "
                "probability flow) or em (the SDE)"
            )
    times = list(bridge.reference.times)
    grid = times if to == "end" else times[::-1]
    how: dict[str, Any] = {"to": to, "last_noise": options.last_noise is not False}

    def go(x: Tensor, seed: int, first: int) -> Tensor:
        if not kept:
            return bridge.translate(x, seed, first=first, **how)[None]
        all_times = kept if kept[-1] == grid[-1] else [*kept, grid[-1]]
        states = bridge.trajectories(x, seed, times=all_times, first=first, **how)
        return states if len(all_times) > len(kept) else torch.cat([states, states[-1:]])

    return Route(f"its chain, {len(grid) - 1} steps", grid, kept, go)


def _solver(options: argparse.Namespace, bridge: Bridge, to: str, kept: list[float]) -> Route:
    solver = names.load_solver(options.solver)
    problem, name, end = _problem(options, bridge, to, solver)
    if to == "end" and options.t_end is not None:
        raise ValueError(f"--t-end {options.t_end:g}: the way to the end is from 0 to T; leave it out")
    steps = STEPS if options.steps is None else options.steps
    make = names.grid(options.grid or "uniform")
    times = make(bridge.reference.process, steps, t_end=end if options.t_end is None else options.t_end)
    low, high = float(times[-1]), float(times[0])
    outside = [t for t in kept if not low <= t <= high]
    if outside:
        raise ValueError(
            f"--times: {outside[0]:g} is not between {low:g} and {high:g}, from where to where the solver goes"
        )
    grid = _with(times, kept)
    grid = grid[::-1] if to == "end" else grid

    def go(x: Tensor, seed: int, first: int) -> Tensor:
        with torch.no_grad():
            found = solve(problem, solver, x, grid=np.array(grid), seed=seed, first=first, save=[*kept, grid[-1]])
        return found.trajectory

    return Route(f"{solver!r} along {name}, {len(grid) - 1} steps", grid, kept, go)


def _problem(
    options: argparse.Namespace, bridge: Bridge, to: str, solver: Solver
) -> tuple[SDE | ODE | Field, str, float]:
    """What the solver integrates, its name, and the time where it ends on the way to the start."""
    if solver.family == "sde" and SDE in solver.integrates:
        return (bridge.forward_sde() if to == "end" else bridge.backward_sde()), f"the SDE to the {to}", 0.0
    if solver.family != "ode":
        raise ValueError(
            f"--solver {options.solver}: the noise of {type(solver).__name__} goes with a score, which a bridge has not; pass "
            "chain, em (its SDE), or a deterministic one such as heun (its probability flow)"
        )
    if ODE in solver.integrates:
        return bridge.probability_flow(), "the probability flow", 0.0
    if to == "end":
        raise ValueError(f"--solver {options.solver} goes from T down alone; to the end pass chain, em or heun")
    return bridge.flow_field(), "the probability flow", bridge.reference.process.t_min


def _with(grid: Sequence[float], more: Sequence[float]) -> list[float]:
    """The decreasing times with more of them, which replace those that are theirs to rounding."""
    span = float(grid[0]) - float(grid[-1])
    own = [float(t) for t in grid if all(abs(float(t) - u) > 1e-9 * span for u in more)]
    return sorted([*own, *more], reverse=True)

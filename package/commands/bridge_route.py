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
    if to == "end" and options.t_end is not None:
        raise ValueError(f"--t-end {options.t_end:g}: the way to the end is from 0 to T; leave it out")
    field, problem, name = _problem(options, bridge, to, solver)
    steps, T = STEPS if options.steps is None else options.steps, field.process.T

    def turned(t: float) -> float:
        """u, which falls from T on the way, of t; and t of u."""
        return T - t if to == "end" else t

    make, ways = names.grid(options.grid or "uniform"), [turned(t) for t in kept]
    times = make(field.process, steps, t_end=0.0 if options.t_end is None else options.t_end)
    low = float(times[-1])
    outside = [t for t, u in zip(kept, ways, strict=True) if u < low]
    if outside:
        raise ValueError(
            f"--times: {outside[0]:g} is not between {low:g} and {T:g}, from where to where the solver goes"
        )
    falling = _with(times, ways)
    own = float if problem is field else turned  # the time that the problem is in: a field's is u
    grid, save = [own(u) for u in falling], [own(u) for u in (*ways, falling[-1])]

    def go(x: Tensor, seed: int, first: int) -> Tensor:
        with torch.no_grad():
            found = solve(problem, solver, x, grid=np.array(grid), seed=seed, first=first, save=save)
        return found.trajectory

    return Route(f"{solver!r} along {name}, {len(grid) - 1} steps", [turned(u) for u in falling], kept, go)


def _problem(
    options: argparse.Namespace, bridge: Bridge, to: str, solver: Solver
) -> tuple[Field, SDE | ODE | Field, str]:
    """The bridge's field for the solver, what is solved, which may be the same as an SDE or ODE, and its name."""
    to_end, sde = to == "end", solver.family == "sde" and SDE in solver.integrates
    noise = 1.0 if sde else 0.0 if solver.family == "ode" else solver.stochasticity
    if noise is None or solver.family == "corrector":
        raise ValueError(
            f"--solver {options.solver}: the noise of {type(solver).__name__} goes with a score of the marginals, which a bridge "
            "has not; pass chain, em or ancestral (its SDE), or a deterministic one such as heun (its probability flow)"
        )
    field = bridge.forward_field(noise) if to_end else bridge.backward_field(noise)
    name = {0.0: "the probability flow", 1.0: f"the SDE to the {to}"}.get(
        noise, f"the SDE of noise {noise:g} to the {to}"
    )
    if sde:
        return field, bridge.forward_sde() if to_end else bridge.backward_sde(), name
    if solver.family == "ode" and ODE in solver.integrates:
        return field, bridge.probability_flow(), name
    return field, field, name


def _with(grid: Sequence[float], more: Sequence[float]) -> list[float]:
    """The decreasing times with more of them, which replace those that are theirs to rounding."""
    span = float(grid[0]) - float(grid[-1])
    own = [float(t) for t in grid if all(abs(float(t) - u) > 1e-9 * span for u in more)]
    return sorted([*own, *more], reverse=True)

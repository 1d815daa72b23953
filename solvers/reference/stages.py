"""Where a step evaluates the field: a check that sees slips which leave the order alone.

A stage may be wrong by O(h^2) without lowering a second-order method's order. But on a constant prediction the trajectory
is known, x = alpha D + sigma eps with D and eps fixed, and a method that integrates it exactly (an exponential integrator,
or any Runge-Kutta method in (x/alpha, nu)) has its stages on it too.
"""

from __future__ import annotations

from typing import Any

import torch

from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.order import judged_on
from halfbridge.solvers.run import solve
from halfbridge.solvers.solver import Solver

__all__ = ["misplaced_stages"]

EXACT = 1e-11  # relative to the state
OFF = 1e-9


def misplaced_stages(solver: Solver, process: Process, grid: Any) -> tuple[str, ...]:
    """A sentence for each constant prediction that the deterministic `solver` ends exactly but evaluates elsewhere."""
    found = []
    eps = torch.tensor([[0.7, -1.3]], dtype=torch.float64, device="cpu")
    data = torch.tensor([[0.4, 0.9]], dtype=torch.float64, device="cpu")
    for predicts, value in (("noise", eps), ("data", data)):
        visited: list[tuple[float, torch.Tensor]] = []

        def fn(t: float, x: torch.Tensor, value: torch.Tensor = value, visited: Any = visited) -> torch.Tensor:
            visited.append((t, x.clone()))
            return value

        start, end = float(grid[0]), float(grid[-1])
        field = judged_on(solver, Field(process, fn, predicts))
        x = solve(field, solver, _trajectory(process, data, eps, start), grid=grid).x
        if _distance(process, x, data, eps, end) > EXACT:
            continue
        t, worst = max(((t, _distance(process, u, data, eps, t)) for t, u in visited), key=lambda pair: pair[1])
        if worst > OFF:
            found.append(
                f"a stage is evaluated off the trajectory, by {worst:.2g} of the state at t = {t:.4g}, though the step is exact "
                f"for a constant {predicts} prediction: look for a slip in the state handed to that evaluation"
            )
    return tuple(found)


def _trajectory(process: Process, data: torch.Tensor, eps: torch.Tensor, t: float) -> torch.Tensor:
    return process.alpha(t) * data + process.sigma(t) * eps


def _distance(process: Process, x: torch.Tensor, data: torch.Tensor, eps: torch.Tensor, t: float) -> float:
    exact = _trajectory(process, data, eps, t)
    return float((x - exact).abs().max() / exact.abs().max())

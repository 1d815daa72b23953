"""The exact law of a scheme: a reader of the plan, run on probes instead of samples.

On Gaussian data every model output is affine in the state, hence so is every step, and the end of the run is
A x_start + b + sum_k N_k z_k with independent normals z_k. In the eigenbasis of the data covariance A and N_k are diagonal,
so one run on 2 + K rows (the offset, the gain of the start, the gain of each normal) gives them all, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from halfbridge.solvers.algebra import Apply
from halfbridge.solvers.field import view_coefficients
from halfbridge.solvers.plan import Plan, plan
from halfbridge.solvers.problems import ODE, SDE, Problem
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.runner import execute
from halfbridge.solvers.solver import Solver

__all__ = ["Gains", "gains", "law_of"]


def law_of(
    solver: Solver,
    process: Process | Problem,
    grid: Sequence[float] | Any,
    data: Gaussian | None = None,
    start: Gaussian | None = None,
    joint: bool = False,
) -> Gaussian:
    """The law of the run's end on Gaussian data with the exact field, or on a linear-Gaussian SDE or ODE.

    process  a Process (the field is then that of `data`), or an SDE or ODE with an affine drift and a diffusion without x
    data     the data law, Gaussian with any covariance; for an SDE or ODE the law at the grid's first time
    start    the law at the grid's first time, any covariance (default: `data` diffused to it)
    joint    the law of (end, start), stacked: 2 d dimensions

    No sampling: exact to rounding. Raises ValueError for a solver whose step depends on norms of the state (Langevin with
    snr), for data that are not Gaussian, and where the scheme is not affine.
    """
    for name, law in (("data", data), ("start", start)):
        if law is not None and not isinstance(law, Gaussian):
            raise ValueError(
                f"{name} must be an hb.reference.Gaussian, got {type(law).__name__}: the law is exact for those only"
            )
    if isinstance(process, Process):
        if data is None:
            raise ValueError("data = None: the exact field of a Process needs the data's Gaussian")
        p = plan(solver, process, grid)
        g = gains(p, data)
        Q = data.eigenvectors
        A, b = (Q * g.start) @ Q.T, Q @ g.offset
        noise = (Q * g.variance) @ Q.T
        start = data.at(process, float(p.grid[0])) if start is None else start
    else:
        start = start if start is not None else data
        if start is None:
            raise ValueError("start = None: an SDE or ODE needs the law at the grid's first time")
        A, b, noise = _affine_map(plan(solver, process, grid), process, start.dim)
    if start.dim != len(b):
        raise ValueError(f"start has dimension {start.dim}, the data {len(b)}")
    cross = A @ start.cov
    mean, cov = A @ start.mean + b, cross @ A.T + noise
    if joint:
        mean = torch.cat([mean, start.mean])
        cov = torch.cat([torch.cat([cov, cross], 1), torch.cat([cross.T, start.cov], 1)])
    return Gaussian(mean, (cov + cov.T) / 2)


class Gains(NamedTuple):
    """end = start * x + offset + N(0, variance), coordinate by coordinate in the data's eigenbasis; each (d,)."""

    start: torch.Tensor
    offset: torch.Tensor
    variance: torch.Tensor


def gains(p: Plan, data: Gaussian) -> Gains:
    """The map that a plan for a Field makes of a state, on Gaussian data."""
    _refuse_norms(p)
    process, eigenvalues = p.process, data.eigenvalues
    assert process is not None
    draws = [draw.index for draw in p.draws]
    mean = torch.zeros(2 + len(draws), data.dim, dtype=torch.float64, device="cpu")
    mean[0] = data.eigenvectors.T @ data.mean  # only the offset row sees the mean: the others are exactly linear

    def eigen_field(t: float, x: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        noise = sigma * (x - alpha * mean) / (alpha**2 * eigenvalues + sigma**2)
        if p.predicts == "noise":
            return noise
        c_x, c_p = view_coefficients(p.predicts or "noise", "noise", alpha, sigma)
        return c_x * x + c_p * noise

    x = torch.zeros_like(mean)
    x[1] = 1.0
    probes = _Probes(dict(zip(draws, range(2, len(x)), strict=True)))
    with torch.no_grad():
        end = execute(p, p.problem.with_function(eigen_field), x, probes)
    return Gains(end[1], end[0], end[2:].square().sum(0))


class _Probes:
    """A noise object whose draw k is 1 in its own row and 0 elsewhere."""

    def __init__(self, rows: dict[int, int]) -> None:
        self.rows = rows

    def __call__(self, draw: int, t: float, s: float, like: torch.Tensor) -> torch.Tensor:
        z = torch.zeros_like(like)
        z[self.rows[draw]] = 1.0
        return z


def _affine_map(p: Plan, problem: Problem, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(A, b, noise covariance) of a run on R^d, by probing every start coordinate and every normal's."""
    if not isinstance(problem, (SDE, ODE)):
        raise TypeError(f"process must be a Process, an SDE or an ODE, got {type(problem).__name__}")
    if isinstance(problem, SDE) and problem.state_dependent:
        raise ValueError("the diffusion depends on x, so the law is not Gaussian; pass a float or a function of t")
    _refuse_norms(p, allow="diffusion")
    sizes: dict[int, int] = {}

    def measure(draw: int, t: float, s: float, like: torch.Tensor) -> torch.Tensor:
        sizes[draw] = like.shape[1]
        return torch.zeros_like(like)

    zero = torch.zeros(1, d, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        execute(p, problem, zero, measure)
        first = {draw: 2 + d + sum(n for k, n in sizes.items() if k < draw) for draw in sizes}
        x = torch.zeros(2 + d + sum(sizes.values()), d, dtype=torch.float64, device="cpu")
        x[1] = (
            torch.linspace(-1.0, 2.0, d, dtype=torch.float64, device="cpu").cos() * 3.0
        )  # a mixed probe, to see that the map is affine
        x[2 : 2 + d] = torch.eye(d, dtype=torch.float64, device="cpu")

        def probes(draw: int, t: float, s: float, like: torch.Tensor) -> torch.Tensor:
            z = torch.zeros_like(like)
            z[1] = 0.5
            z[first[draw] : first[draw] + like.shape[1]] = torch.eye(like.shape[1], dtype=like.dtype, device="cpu")
            return z

        end = execute(p, problem, x, probes)
    b = end[0]
    A, N = (end[2 : 2 + d] - b).T, (end[2 + d :] - b).T
    mixed = A @ x[1] + b + 0.5 * N.sum(1)
    scale = end.abs().max().clamp_min(1e-300)
    if not (mixed - end[1]).abs().max() <= 1e-9 * scale * max(1, len(x)):
        raise ValueError("the scheme is not affine in the state (is the drift?), so its law is not Gaussian")
    return A, b, N @ N.T


def _refuse_norms(p: Plan, allow: str = "") -> None:
    for step in p.steps:
        for op in step.ops:
            if isinstance(op, Apply) and not (allow and op.label.startswith(allow)):
                raise ValueError(
                    f"{p.solver!r} has no exact law: {op.label} sizes its step by the norms of the state; "
                    "Langevin(step_size=...) has one"
                )

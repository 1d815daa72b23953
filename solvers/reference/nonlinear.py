"""Errors of solvers on mixtures, where nothing is affine: deterministic answers all the same.

flow_errors    a deterministic solver's end points, against the probability flow
chain_errors   expectations under the law that a stochastic solver makes in one or two dimensions, against the diffused mixture's
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from halfbridge.solvers.algebra import Evaluate
from halfbridge.solvers.field import Field
from halfbridge.solvers.grids import half_log_snr
from halfbridge.solvers.plan import plan
from halfbridge.solvers.problems import ODE
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.chain_law import chain_law, chain_of
from halfbridge.solvers.reference.flows import exact_flow
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.reference.order import default_steps, judged_on
from halfbridge.solvers.reference.plane import plane_law
from halfbridge.solvers.run import solve
from halfbridge.solvers.solver import MultistepSolver, Solver

__all__ = ["CHAIN_STEPS", "chain_errors", "flow_errors", "has_chain", "last_time", "mixture_errors"]

STARTS = 8  # points of the diffused mixture that a flow is followed from
LAST = 3.0  # half log-SNR at which a flow ends unless it is told: sigma/alpha = 0.05
WINDOW = (-1.0, 1.0)  # half log-SNRs between which a chain's law is followed: what it does there takes 1000 nodes
PLANE_WINDOW = (-1.0, 0.0)  # in two dimensions
REACH = (8.0, 6.0)  # standard deviations of the outermost component that an axis holds, in one and in two dimensions
SPACING = (0.5, 0.9)  # of the nodes, in standard deviations of the narrowest kernel
CHAIN_STEPS, PLANE_STEPS = (15, 30, 60, 120), (8, 16, 32)  # that show the order there


def mixture_errors(
    solver: Solver,
    process: Process,
    mixture: GaussianMixture,
    grid: Callable[..., Any],
    t_end: float | None = None,
    predicts: str = "noise",
) -> tuple[Callable[[int], torch.Tensor], tuple[int, ...]]:
    """(the signed errors of the scheme with n steps as a function of n, numbers of steps that show the order): `chain_errors`
    for a solver that draws normals, else `flow_errors`, which alone takes `grid` and `t_end`."""
    field = mixture.field(process, predicts)
    if plan(solver, judged_on(solver, field), grid(process, 2, t_end=t_end)).draws:
        if grid is not half_log_snr or t_end is not None:
            raise ValueError(
                "`grid` and `t_end` cannot be chosen for a stochastic solver on a mixture, which has its own; leave them out"
            )
        return chain_errors(solver, process, mixture, predicts), PLANE_STEPS if mixture.dim == 2 else CHAIN_STEPS
    return flow_errors(solver, process, mixture, grid, t_end, predicts), default_steps(solver)


def has_chain(solver: Solver, process: Process) -> bool:
    """Whether each step of the solver on a Field is a Gaussian kernel: one normal, added after the last evaluation."""
    if isinstance(solver, MultistepSolver):
        return False
    grid = [_time_at(process, lam) for lam in (WINDOW[0], 0.0, WINDOW[1])]
    for step in plan(solver, judged_on(solver, Field(process, lambda t, x: x)), grid).steps:
        noisy = [i for i, op in enumerate(step.ops) if getattr(op, "draw", None)]
        if len(step.draws) != 1 or any(isinstance(op, Evaluate) for op in step.ops[noisy[0] :]):
            return False
    return True


def last_time(process: Process) -> float:
    """Where the noise is a twentieth of the signal, or t_min where it never falls as far."""
    return _time_at(process, LAST)


def _time_at(process: Process, lam: float) -> float:
    """The time of that half log-SNR, or the end of [t_min, T] that is nearest to it."""
    low, high = process.half_log_snr(process.T), process.half_log_snr(process.t_min)
    return process.T if lam <= low else process.t_min if lam >= high else process.time_at(lam)


def flow_errors(
    solver: Solver,
    process: Process,
    mixture: GaussianMixture,
    grid: Callable[..., Any],
    t_end: float | None = None,
    predicts: str = "noise",
) -> Callable[[int], torch.Tensor]:
    """End points of a deterministic scheme less those of the probability flow (scipy's DOP853 at 1e-12), from eight points of
    the diffused mixture at T."""
    field = mixture.field(process, predicts)
    end = last_time(process) if t_end is None else t_end
    x = mixture.at(process, process.T).sample(STARTS, seed=0)
    exact = exact_flow(field, x, process.T, end)

    def error(n: int) -> torch.Tensor:
        return solve(judged_on(solver, field), solver, x, grid=grid(process, n, t_end=end)).x - exact

    return error


def chain_errors(
    solver: Solver, process: Process, mixture: GaussianMixture, predicts: str = "noise"
) -> Callable[[int], torch.Tensor]:
    """Weak errors at the end of a chain in one or two dimensions: of u, u^2, cos(k u) and sin(k u), k = 1, 2, 3, for each
    coordinate u in standard deviations of the exact law from its mean; in two also of their product and cos(u + v).

    n equal steps in half log-SNR, in one dimension from -1 to 1, in two from -1 to 0 (as far as the process goes), from the
    exact law at the first; by Chapman-Kolmogorov quadrature to 1e-8, on nodes fine enough for the steps' kernels. ValueError for
    mixtures of more dimensions, and where `chain_of` refuses the solver.
    """
    if mixture.dim > 2:
        raise ValueError(
            f"the mixture has dimension {mixture.dim}: the law of a stochastic solver is followed in one or two; "
            "pass a mixture of as many"
        )
    first, last = (_time_at(process, lam) for lam in (WINDOW if mixture.dim == 1 else PLANE_WINDOW))
    problem = judged_on(solver, mixture.field(process, predicts))
    assert not isinstance(problem, ODE)  # which no solver with noise integrates
    start, end = mixture.at(process, first), mixture.at(process, last)

    def error(n: int) -> torch.Tensor:
        lams = np.linspace(process.half_log_snr(first), process.half_log_snr(last), n + 1)
        chain = chain_of(solver, problem, [first, *(process.time_at(float(lam)) for lam in lams[1:-1]), last])
        at = end.mean + torch.linspace(-6.0, 6.0, 9, dtype=torch.float64)[:, None] * end.cov.diagonal().sqrt()
        spacing = SPACING[mixture.dim - 1] * min(float(variance(at).min()) for variance in chain.variances) ** 0.5
        axes = [_axis(start, end, i, spacing) for i in range(mixture.dim)]
        nodes = torch.cartesian_prod(*axes).reshape(-1, mixture.dim)
        p0 = start.log_prob(nodes).exp()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an unstable coarse run leaves the box: its error says so
            if mixture.dim == 1:
                p = chain_law(*chain, axes[0], p0, tol=1e-8)[-1]
            else:
                p = plane_law(chain, axes[0], axes[1], p0.view(len(axes[0]), -1))
        cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
        wrong = (p.reshape(-1) - end.log_prob(nodes).exp()) * cell
        u = ((nodes - end.mean) / end.cov.diagonal().sqrt()).T
        tests = [*u, *u.square(), *(wave(k * c) for c in u for k in (1, 2, 3) for wave in (torch.cos, torch.sin))]
        if mixture.dim == 2:
            tests += [u[0] * u[1], torch.cos(u[0] + u[1])]
        return torch.stack(tests) @ wrong

    return error


def _axis(start: GaussianMixture, end: GaussianMixture, i: int, spacing: float) -> torch.Tensor:
    """Nodes that hold both laws along coordinate i."""
    ends = [
        float(part.mean[i] + side * REACH[start.dim - 1] * part.cov[i, i].sqrt())
        for law in (start, end)
        for part in law.components
        for side in (-1.0, 1.0)
    ]
    return torch.linspace(min(ends), max(ends), math.ceil((max(ends) - min(ends)) / spacing) | 1, dtype=torch.float64)

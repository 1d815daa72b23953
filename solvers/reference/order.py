"""Orders of convergence, measured on exact laws: no sampling, so the slope is the scheme's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from halfbridge.solvers import grids
from halfbridge.solvers.field import Field
from halfbridge.solvers.plan import plan
from halfbridge.solvers.problems import ODE, Problem
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.law import gains
from halfbridge.solvers.solver import Solver

__all__ = ["Study", "default_steps", "law_error", "law_errors", "observed_order", "study"]

FLOOR = 1e-11  # relative errors below this are rounding, not the scheme
Grid = Callable[..., Any]


class Study(NamedTuple):
    """Errors of a scheme at several numbers of steps, and the order that the finest of them show."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    order: float


def default_steps(solver: Solver) -> tuple[int, ...]:
    """Finer grids for first order, whose next term fades slowly: Euler-Maruyama on VE shows 0.80 at 320 steps."""
    return (160, 320, 640, 1280) if solver.order <= 1 else (40, 80, 160, 320)


def observed_order(
    solver: Solver,
    process: Process,
    data: Gaussian,
    *,
    steps: Sequence[int] | None = None,
    grid: Grid = grids.half_log_snr,
    t_end: float | None = None,
    predicts: str = "noise",
) -> float:
    """The order at which the law of `solver` on Gaussian data tends to the exact one, from the exact start law.

    The whole law is compared: mean, covariance and (where the solver states its `stochasticity`) the gain of the start,
    each relative to the exact standard deviations. The order is the least-squares slope over the three finest grids whose
    error is above rounding, or the lower slope of what extrapolation leaves: see `study`. grid: one of hb.grids, or any
    function (process, n, t_end=...). inf if no error is seen at all. Raises as `law_of` does.
    """

    def errors(n: int) -> torch.Tensor:
        return law_errors(solver, process, data, grid(process, n, t_end=t_end), predicts)

    return study(errors, default_steps(solver) if steps is None else steps, solver.order).order


def study(error: Callable[[int], torch.Tensor], steps: Sequence[int], declared: int) -> Study:
    """The observed order of signed errors, the largest of which counts at each number of steps.

    An error C n^-p + B with a small bias B of the other sign looks better than it is on any few grids. Extrapolating with
    the declared order removes C and keeps B, so the extrapolated errors must vanish at least as fast: if they do not, theirs
    is the order. Errors that do not fall have order 0, those that overflow -inf, those below rounding inf.
    Raises ValueError unless there are at least 3 increasing numbers of steps.
    """
    if len(steps) < 3 or any(not isinstance(n, int) or n < 1 for n in steps) or list(steps) != sorted(set(steps)):
        raise ValueError(
            f"steps = {tuple(steps)!r} must be at least 3 different numbers of steps, increasing, such as (40, 80, 160)"
        )
    signed = [error(n) for n in steps]
    errors = tuple(float(e.abs().max()) for e in signed)
    if any(not math.isfinite(e) for e in errors):
        return Study(tuple(steps), errors, -math.inf)
    order, p = _slope(steps, errors), max(1, declared)
    rest = []
    for (n, coarse), (m, fine) in itertools.pairwise(zip(steps, signed, strict=True)):
        growth = (m / n) ** p
        rest.append(float(((growth * fine - coarse) / (growth - 1.0)).abs().max()))
    extrapolated = _slope(steps[1:], rest)
    if extrapolated < p - 0.15:
        order = min(order, extrapolated)
    return Study(tuple(steps), errors, max(order, 0.0))


def _slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    seen = [(n, e) for n, e in zip(steps, errors, strict=True) if e > FLOOR][-3:]
    if len(seen) < 2:
        return math.inf
    return -float(np.polyfit(np.log([n for n, _ in seen]), np.log([e for _, e in seen]), 1)[0])


def law_error(solver: Solver, process: Process, data: Gaussian, grid: Any, predicts: str = "noise") -> float:
    """Relative distance of the scheme's law from the exact one, the worst of its parts and directions."""
    return float(law_errors(solver, process, data, grid, predicts).abs().max())


def law_errors(solver: Solver, process: Process, data: Gaussian, grid: Any, predicts: str = "noise") -> torch.Tensor:
    """Signed errors of the law in the data's eigenbasis, relative to the exact standard deviations: a row for the mean, one
    for the variances and, where the solver states its `stochasticity`, one for the gain of the start."""
    if not isinstance(data, Gaussian):
        raise ValueError(
            f"data must be an hb.reference.Gaussian, got {type(data).__name__}: laws are exact for those only"
        )
    p = plan(solver, judged_on(solver, Field(process, _never, predicts)), grid)
    t, s = float(p.grid[0]), float(p.grid[-1])
    g = gains(p, data)
    alpha_t, alpha_s = process.alpha(t), process.alpha(s)
    S_t = alpha_t**2 * data.eigenvalues + process.sigma(t) ** 2
    S_s = alpha_s**2 * data.eigenvalues + process.sigma(s) ** 2
    mean = data.eigenvectors.T @ data.mean
    size = S_s.sqrt().clamp_min(1e-30)
    parts = [
        (g.start * alpha_t * mean + g.offset - alpha_s * mean) / size,
        (g.start.square() * S_t + g.variance - S_s) / size.square(),
    ]
    if p.solver.stochasticity is not None:
        exact = exact_gain(S_t, S_s, alpha_t / alpha_s, p.solver.stochasticity)
        parts.append((g.start - exact) * S_t.sqrt() / size)
    return torch.stack(parts)


def judged_on(solver: Solver, field: Field) -> Problem:
    """What a solver is given to judge it by: the field, or for one that integrates no Field its flow or its reverse SDE."""
    if issubclass(Field, solver.integrates):
        return field
    return field.probability_flow() if issubclass(ODE, solver.integrates) else field.reverse_sde()


def _never(t: float, x: torch.Tensor) -> torch.Tensor:
    raise TypeError("a law is made from the plan alone")


def exact_gain(S_t: torch.Tensor, S_s: torch.Tensor, r: float, level: float) -> torch.Tensor:
    """d x_s / d x_t in the family dx = [a x - (1 + l^2)/2 g^2 score] dt + l g dW on Gaussian data.

    With S' = 2 a S + g^2 the rate a + (1 + l^2)/2 g^2/S integrates to (S_s/S_t)^((1 + l^2)/2) r^(l^2), r = alpha_t/alpha_s:
    the probability flow's sqrt(S_s/S_t) at l = 0, and at l = 1 the regression of x_s on x_t.
    """
    gain: torch.Tensor = (S_s / S_t) ** ((1.0 + level**2) / 2.0) * r ** (level**2)
    return gain

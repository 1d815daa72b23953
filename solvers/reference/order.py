"""Orders of convergence, measured on exact laws: no sampling, so the slope is the scheme's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from halfbridge.solvers import grids
from halfbridge.solvers.plan import plan
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.law import gains
from halfbridge.solvers.solver import Solver

__all__ = ["STEPS", "Study", "law_error", "observed_order", "study"]

STEPS = (40, 80, 160, 320)
FLOOR = 1e-11  # relative errors below this are rounding, not the scheme
Grid = Callable[..., Any]


class Study(NamedTuple):
    """Errors of a scheme at several numbers of steps, and the order that the finest of them show."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    order: float


def observed_order(
    solver: Solver,
    process: Process,
    data: Gaussian,
    *,
    steps: Sequence[int] = STEPS,
    grid: Grid = grids.half_log_snr,
    t_end: float | None = None,
    predicts: str = "noise",
) -> float:
    """The order at which the law of `solver` on Gaussian data tends to the exact one, from the exact start law.

    The whole law is compared: mean, covariance and (where the solver states its `stochasticity`) the gain of the start,
    each relative to the exact standard deviations. The order is the least-squares slope over the three finest grids whose
    error is above rounding. grid: one of hb.grids, or any function (process, n, t_end=...). inf if no error is seen at all.
    """
    return study(lambda n: law_error(solver, process, data, grid(process, n, t_end=t_end), predicts), steps).order


def study(error: Callable[[int], float], steps: Sequence[int] = STEPS) -> Study:
    errors = tuple(error(n) for n in steps)
    seen = [(n, e) for n, e in zip(steps, errors, strict=True) if e > FLOOR][-3:]
    if any(not math.isfinite(e) for e in errors):
        return Study(tuple(steps), errors, -math.inf)
    if len(seen) < 2:
        return Study(tuple(steps), errors, math.inf)
    slope = np.polyfit(np.log([n for n, _ in seen]), np.log([e for _, e in seen]), 1)[0]
    return Study(tuple(steps), errors, -float(slope))


def law_error(solver: Solver, process: Process, data: Gaussian, grid: Any, predicts: str = "noise") -> float:
    """Relative distance of the scheme's law from the exact one, the worst of its parts and directions."""
    p = plan(solver, process, grid, predicts)
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
    return float(torch.stack(parts).abs().max())


def exact_gain(S_t: torch.Tensor, S_s: torch.Tensor, r: float, level: float) -> torch.Tensor:
    """d x_s / d x_t in the family dx = [a x - (1 + l^2)/2 g^2 score] dt + l g dW on Gaussian data.

    With S' = 2 a S + g^2 the rate a + (1 + l^2)/2 g^2/S integrates to (S_s/S_t)^((1 + l^2)/2) r^(l^2), r = alpha_t/alpha_s:
    the probability flow's sqrt(S_s/S_t) at l = 0, and at l = 1 the regression of x_s on x_t.
    """
    return (S_s / S_t) ** ((1.0 + level**2) / 2.0) * r ** (level**2)

"""Errors of solvers on mixtures, where nothing is affine: deterministic answers all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.flows import exact_flow
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.reference.order import judged_on
from halfbridge.solvers.run import solve
from halfbridge.solvers.solver import Solver

__all__ = ["flow_errors", "last_time", "mixture_errors"]

STARTS = 8  # points of the diffused mixture that a flow is followed from
LAST = 3.0  # half log-SNR at which a study ends unless it is told: sigma/alpha = 0.05


def mixture_errors(
    solver: Solver,
    process: Process,
    mixture: GaussianMixture,
    grid: Callable[..., Any],
    t_end: float | None = None,
    predicts: str = "noise",
) -> Callable[[int], torch.Tensor]:
    """The signed errors of the scheme with n steps of `grid`, as a function of n."""
    return flow_errors(solver, process, mixture, grid, t_end, predicts)


def last_time(process: Process) -> float:
    """Where the noise is a twentieth of the signal, or t_min where it never falls as far."""
    return process.time_at(LAST) if process.half_log_snr(process.t_min) > LAST else process.t_min


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

"""Exact log-likelihoods, by the instantaneous change of variables along the probability flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from halfbridge.kernels.philox import check_first
from halfbridge.solvers import adaptive, grids
from halfbridge.solvers.density_flow import DensityFlow, log_spread
from halfbridge.solvers.divergence import Hutchinson, HutchPP, check_divergence, mean_and_error
from halfbridge.solvers.field import Field
from halfbridge.solvers.prior import check_prior, prior_log_prob
from halfbridge.solvers.processes import Process
from halfbridge.solvers.runner import NonFiniteError, check_state
from halfbridge.solvers.solver import Solver

__all__ = ["Likelihood", "check_points", "check_start", "log_likelihood"]


class Likelihood(NamedTuple):
    """log_prob: nats, (batch,) float64. std_error: of it, (batch,), from what was drawn at random; None where nothing was,
    or too little to tell (one probe). nfe: evaluations of the field. latent: x_T of each sample, like x0 in float64, the
    argument of the prior (None for a bound)."""

    log_prob: torch.Tensor
    std_error: torch.Tensor | None
    nfe: int
    latent: torch.Tensor | None = None


def log_likelihood(
    field: Field,
    x0: torch.Tensor,
    divergence: Literal["exact"] | Hutchinson | HutchPP = "exact",
    prior: Any = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    *,
    solver: str | Solver = "dopri8",
    grid: Sequence[float] | np.ndarray[Any, Any] | None = None,
    t_min: float | None = None,
    first: int = 0,
    max_steps: int = 10_000,
    adjoint_params: Iterable[torch.Tensor] | None = None,
) -> Likelihood:
    """log p(x0) of the model that the probability flow makes of `prior`:

        log p(x0) = log prior(x_T) + int_{t_min}^T div(a x - g^2 score/2)(t, x_t) dt,   x_{t_min} = x0

    along the flow integrated forward. It is the density of the model at time t_min, where sampling stops, at x0: for the
    exact field and prior, that of the data with the noise of t_min. Chen et al. 2018; Song et al. 2021, section 4.3.

    x0          (batch, *shape). The field is evaluated in x0's dtype; states and sums are float64
    divergence  "exact": d backward passes an evaluation. hb.Hutchinson, hb.HutchPP: unbiased, with probes that stay the
                same along the path (Grathwohl et al. 2019) and belong to a sample's global index; each term's integral
                is kept, and std_error is their spread
    prior       a law with log_prob(x), called with float64 x (batch, *shape); default N(0, prior_std^2 I), from which
                samples are drawn. Its gap to the exact law p_T of x_T is KL(p_T || prior), the mean over data of
                p_T.log_prob(x) - prior.log_prob(x) at x = found.latent, where p_T = data.at(process, process.T) is known
    solver      "dopri5" or "dopri8" (torchdiffeq), to rtol and atol for x/sqrt(alpha^2 + sigma^2) and log p of every
                sample; steps are common to the batch, so results depend on it within the tolerances. Or one of our
                solvers, deterministic, with a `grid`: log p to the solver's order, and independent of the batch. Those
                of a Field run as in sampling (Heun, DDIM, DPMSolver, DPMSolverPP); those of an ODE alone run on the flow
                in t (EulerMaruyama is Euler's method)
    grid        times from T to t_min as hb.grids makes them, or the same reversed
    t_min       for adaptive solvers; default the process's
    first       global index of x0[0]
    max_steps   an adaptive run that needs more is given up
    adjoint_params  tensors to differentiate by: gradients by torchdiffeq's adjoint equation, in memory that does not grow
                with the steps (adaptive solvers; x0 is always among them)

    Gradients, of second order too for the exact divergence, flow to x0 and the field's parameters where they are
    recorded; use torch.no_grad() where they are not wanted. Raises ImportError without torchdiffeq where it is needed,
    NonFiniteError for a field that is not finite, RuntimeError where an adaptive run gives up, ValueError or TypeError
    naming the argument for bad ones.
    """
    check_points(field, x0)
    check_divergence(divergence, "divergence")
    first = check_first(first, len(x0))
    process = field.process
    if isinstance(solver, Solver):
        times = _check_grid(process, grid, t_min, solver)
        if adjoint_params is not None:
            raise ValueError(f"adjoint_params is for adaptive solvers, got solver = {solver!r}; pass solver='dopri5'")
    else:
        _check_adaptive(solver, grid, rtol, atol, max_steps, x0.dtype)
        times = [check_start(process, t_min), process.T]
    check_prior(prior, process, times[-1], x0)
    flow = DensityFlow(field, x0, divergence, first)
    if len(x0) == 0:
        none = x0.new_zeros(0, dtype=torch.float64)
        return Likelihood(none, none if flow.count > 1 else None, 0, x0.double())
    x = x0.double().reshape(len(x0), -1)
    if isinstance(solver, Solver):
        end, integral = flow.on_grid(solver, times, x)
    else:
        end, integral = adaptive.integrate(
            flow, x, (times[0], times[-1]), solver, float(rtol), float(atol), max_steps, adjoint_params
        )
    value, std_error = mean_and_error(integral)
    latent = end.reshape(x0.shape)
    linear = flow.d * (log_spread(process, times[-1]) - log_spread(process, times[0]))
    return Likelihood(prior_log_prob(prior, process, latent) + linear + value, std_error, flow.nfe, latent)


def check_points(field: Any, x0: Any) -> None:
    """Raise unless x0 is a batch of finite points for a Field."""
    if not isinstance(field, Field):
        raise TypeError(
            f"field must be a Field, got {type(field).__name__}; hb.Field(process, fn) makes one of fn(t, x)"
        )
    if not isinstance(x0, torch.Tensor):
        raise TypeError(f"x0 must be a tensor of shape (batch, *shape), got {type(x0).__name__}")
    check_state(x0)
    if math.prod(x0.shape[1:]) == 0:
        raise ValueError(f"x0 has shape {tuple(x0.shape)} and so no elements in a sample; pass (batch, *shape)")
    bad = int((~torch.isfinite(x0)).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {x0.numel()} entries of x0 are infinite or NaN")


def check_start(process: Process, t_min: float | None) -> float:
    """The time of x0: t_min, or the process's own."""
    if t_min is None:
        return process.t_min
    if isinstance(t_min, bool) or not isinstance(t_min, (int, float)) or not 0.0 < t_min < process.T:
        raise ValueError(
            f"t_min = {t_min!r} must be a number in (0, T) with T = {process.T:g} of {process!r}: at 0 the score of "
            "data that lies on points or surfaces is infinite"
        )
    return float(t_min)


def _check_grid(process: Process, grid: Any, t_min: float | None, solver: Solver) -> list[float]:
    """The times of the grid, increasing."""
    if grid is None:
        raise ValueError(
            f"grid = None, but solver = {solver!r} runs on a grid; pass one such as hb.grids.half_log_snr(process, 50)"
        )
    if t_min is not None:
        raise ValueError(f"t_min = {t_min!r} is for adaptive solvers; a grid begins where it ends: pass t_end to it")
    times = grids.check_times(grid)
    times = grids.check(process, times[::-1].copy() if times[0] < times[-1] else times)[::-1]
    if process.sigma(float(times[0])) == 0.0:
        raise ValueError(
            f"the grid reaches t = {times[0]:.6g}, where sigma = 0 and the flow is singular; end it at t_min = {process.t_min:g}"
        )
    return [float(t) for t in times]


def _check_adaptive(solver: Any, grid: Any, rtol: Any, atol: Any, max_steps: Any, dtype: torch.dtype) -> None:
    if solver not in adaptive.METHODS:
        names = ", ".join(map(repr, adaptive.METHODS))
        raise ValueError(f"solver = {solver!r} is not one of {names}, nor one of our solvers such as hb.Heun()")
    if grid is not None:
        raise ValueError(
            f"grid is for our own solvers, {solver!r} chooses its steps; pass solver=hb.Heun(), or no grid"
        )
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < math.inf:
            raise ValueError(f"{name} = {value!r} must be positive and finite")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps = {max_steps!r} must be an int of at least 1")
    eps = torch.finfo(dtype).eps
    if rtol < eps:
        raise ValueError(
            f"rtol = {rtol:g} is below what a field in {dtype} resolves, {eps:.2g}; pass x0.double(), a larger rtol, or a "
            "solver with a grid"
        )

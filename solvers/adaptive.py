"""torchdiffeq's adaptive Runge-Kutta pairs on the probability flow with its log-density."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from halfbridge.solvers.density_flow import DensityFlow

__all__ = ["METHODS", "integrate"]

METHODS = ("dopri5", "dopri8")


def integrate(
    flow: DensityFlow,
    x: torch.Tensor,
    span: tuple[float, float],
    method: str,
    rtol: float,
    atol: float,
    max_steps: int,
    adjoint_params: Iterable[torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (batch, d) and l (count, batch) at span[1], l = 0 at span[0], from x at span[0]; see `DensityFlow`.

    The variable is u = log nu and the state (x/S, l). A step is taken where, for every sample, the error estimates of x/S
    (root mean square over its elements) and of l (over its rows) are below atol + rtol times the value.
    """
    odeint, odeint_adjoint = _torchdiffeq(method)
    p, (start, end) = flow.field.process, span
    u = torch.tensor([-p.half_log_snr(start), -p.half_log_snr(end)], dtype=torch.float64, device=x.device)

    def rate(u: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        t = min(max(p.time_at(-float(u.detach())), start), end)  # rounding, or the first point of a backward pass
        spread = math.hypot(p.alpha(t), p.sigma(t))
        k = p.sigma(t) / spread
        eps, dl = flow.rates(t, spread * state[0])
        return k * eps - k * k * state[0], dl

    options = {
        "norm": _worst_sample,
        "step_t": u,  # end steps there: past T there may be no process
        "first_step": float(u[1] - u[0]) / 100,  # torchdiffeq's own choice evaluates anywhere
        "max_num_steps": max_steps,
    }
    scales = [math.hypot(p.alpha(t), p.sigma(t)) for t in span]
    state = (x / scales[0], x.new_zeros(flow.count, len(x)))
    try:
        if adjoint_params is None:
            z, rise = odeint(rate, state, u, rtol=rtol, atol=atol, method=method, options=options)
        else:
            z, rise = odeint_adjoint(
                rate,
                state,
                u,
                rtol=rtol,
                atol=atol,
                method=method,
                options=options,
                adjoint_params=tuple(adjoint_params),
            )
    except AssertionError as error:  # torchdiffeq's only kind of error
        raise RuntimeError(
            f"{method} gave up between t = {start:.6g} and {end:.6g} ({error}); the flow is rough for rtol = {rtol:g} and "
            f"atol = {atol:g}: pass larger ones, more than max_steps = {max_steps}, or one of our solvers with a grid"
        ) from error
    return z[1] * scales[1], rise[1]


def _worst_sample(state: Any) -> torch.Tensor:
    """The largest norm among samples: the error of one is not averaged away by the others."""
    z, rise = state
    return torch.maximum(z.square().mean(1).max(), rise.square().mean(0).max()).sqrt()


def _torchdiffeq(method: str) -> tuple[Any, Any]:
    try:
        from torchdiffeq import odeint, odeint_adjoint
    except ImportError as error:
        raise ImportError(
            f"solver={method!r} needs torchdiffeq: pip install 'halfbridge[engines]' or torchdiffeq itself; or pass one of our "
            "solvers with a grid, such as solver=hb.DPMSolver(order=3), grid=hb.grids.half_log_snr(process, 50)"
        ) from error
    return odeint, odeint_adjoint

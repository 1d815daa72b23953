"""High-accuracy solutions of nonlinear probability flows, to judge deterministic solvers by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process

__all__ = ["exact_flow", "prescribed_data", "prescribed_flow"]


def exact_flow(
    field: Field, x: torch.Tensor, t: float, s: float, rtol: float = 1e-12, atol: float = 1e-12
) -> torch.Tensor:
    """The probability flow from x at t to s, by scipy's DOP853 on d(x/alpha)/d lambda = -nu eps.

    float64 whatever x's dtype; the tolerances are per step and relative to the size of x/alpha. Where sigma(s) = 0 the
    flow ends at infinite lambda, which is refused with ValueError.
    """
    from scipy.integrate import solve_ivp

    p = field.process
    if p.sigma(s) == 0.0:
        raise ValueError(f"s = {s:.6g} has no noise, so half_log_snr is infinite there; stop at t_min = {p.t_min:.6g}")
    shape = x.shape

    def rate(lam: float, y: Any) -> Any:
        u = p.time_at(lam)
        state = torch.from_numpy(y).reshape(shape) * p.alpha(u)
        with torch.no_grad():
            return (-math.exp(-lam) * field.noise(u, state)).reshape(-1).numpy()

    span = (p.half_log_snr(t), p.half_log_snr(s))
    start = (x.double() / p.alpha(t)).reshape(-1).numpy()
    found = solve_ivp(rate, span, start, method="DOP853", rtol=rtol, atol=atol * max(1.0, float(np.abs(start).max())))
    if not found.success:
        raise RuntimeError(f"the reference flow from t = {t:.6g} to {s:.6g} failed: {found.message}")
    return torch.from_numpy(found.y[:, -1].copy()).reshape(shape) * p.alpha(s)


def prescribed_data(process: Process, power: int) -> Field:
    """A field whose data prediction is lambda^power in every coordinate, whatever the state.

    With an exact Gaussian score many terms of a quadrature cancel; here each weight stands alone.
    """
    return Field(process, lambda t, x: torch.full_like(x, process.half_log_snr(t) ** power), "data")


def prescribed_flow(process: Process, power: int, x: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """Its exact flow: x_s = sigma_s/sigma_t x + sigma_s int e^l l^power dl, by parts (l = half log-SNR)."""

    def antiderivative(lam: float) -> float:
        """e^lam (lam^k - k lam^(k-1) + k (k-1) lam^(k-2) - ...)."""
        total, factor = 0.0, 1.0
        for j in range(power + 1):
            total += factor * lam ** (power - j)
            factor *= -(power - j)
        return math.exp(lam) * total

    lam_t, lam_s = process.half_log_snr(t), process.half_log_snr(s)
    integral = antiderivative(lam_s) - antiderivative(lam_t)
    return process.sigma(s) / process.sigma(t) * x + process.sigma(s) * integral

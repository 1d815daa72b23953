"""DPM-Solver: exponential integrators for the probability flow, in half log-SNR.

With lambda = log(alpha/sigma) the linear part of the flow integrates exactly (variation of constants):

    x_s = alpha_s/alpha_t x_t - alpha_s  int_{lambda_t}^{lambda_s} e^{-l} eps(l) dl        noise prediction
        = sigma_s/sigma_t x_t + sigma_s  int_{lambda_t}^{lambda_s} e^{+l} D(l)   dl        data prediction

and a solver is a quadrature of what is left, with phi functions for weights: h phi_1(h) = e^h - 1 and h phi_2(h) =
(e^h - 1)/h - 1, the latter formed by `solvers.elementary` without the papers' cancellation at small h.
Lu et al. 2022 (DPM-Solver) and 2022 (DPM-Solver++).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import expm1
from typing import Any, NamedTuple

from halfbridge.solvers.elementary import phi_2
from halfbridge.solvers.field import Field
from halfbridge.solvers.solver import MultistepSolver, Solver

__all__ = ["DPMSolver", "DPMSolverPP"]


@dataclass(frozen=True)
class DPMSolver(Solver):
    """Singlestep DPM-Solver of order 1, 2 or 3, with as many evaluations a step. Lu et al. 2022, algorithms 1 and 2.

    Order 2 takes its midpoint at lambda_t + h/2; order 3 takes r1 = 1/3 and r2 = 2/3, and 2/3 is not free: any other r2
    gives order 2. Order 1 is DDIM with eta = 0. Raises ValueError for any other order.
    """

    order: int = 2

    family = "ode"
    source = "Lu et al. 2022, DPM-Solver"
    integrates = (Field,)
    stochasticity = 0.0

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order not in (1, 2, 3):
            raise ValueError(f"order = {self.order!r} must be 1, 2 or 3")

    @property
    def evals_per_step(self) -> int:  # type: ignore[override]
        return self.order

    def step(self, field: Field, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        return (_first, _second, _third)[self.order - 1](field, x, t, s)


def _first(field: Field, x: Any, t: float, s: float) -> Any:
    """x_s = alpha_s/alpha_t x - sigma_s (e^h - 1) eps_t."""
    p = field.process
    h = p.half_log_snr(s) - p.half_log_snr(t)
    return p.alpha(s) / p.alpha(t) * x - p.sigma(s) * expm1(h) * field.noise(t, x)


def _second(field: Field, x: Any, t: float, s: float) -> Any:
    """The exponential midpoint rule: one half step to m, then the whole step with eps at m alone."""
    p = field.process
    h = p.half_log_snr(s) - p.half_log_snr(t)
    m = p.time_at(p.half_log_snr(t) + h / 2)
    u = p.alpha(m) / p.alpha(t) * x - p.sigma(m) * expm1(h / 2) * field.noise(t, x)
    return p.alpha(s) / p.alpha(t) * x - p.sigma(s) * expm1(h) * field.noise(m, u)


def _third(field: Field, x: Any, t: float, s: float) -> Any:
    """Stages at r1 = 1/3 and r2 = 2/3; the differences D weigh z phi_2(z), the papers' (e^z - 1)/z - 1."""
    p = field.process
    h = p.half_log_snr(s) - p.half_log_snr(t)
    r1, r2 = 1 / 3, 2 / 3
    m1, m2 = p.time_at(p.half_log_snr(t) + r1 * h), p.time_at(p.half_log_snr(t) + r2 * h)

    eps = field.noise(t, x)
    u1 = p.alpha(m1) / p.alpha(t) * x - p.sigma(m1) * expm1(r1 * h) * eps
    D1 = field.noise(m1, u1) - eps
    u2 = (
        p.alpha(m2) / p.alpha(t) * x
        - p.sigma(m2) * expm1(r2 * h) * eps
        - p.sigma(m2) * r2 / r1 * (r2 * h) * phi_2(r2 * h) * D1
    )
    D2 = field.noise(m2, u2) - eps
    return (
        p.alpha(s) / p.alpha(t) * x
        - p.sigma(s) * expm1(h) * eps
        - p.sigma(s) / r2 * h * phi_2(h) * D2
    )  # fmt: skip


class Past(NamedTuple):
    """What DPM-Solver++(2M) remembers of the last step."""

    data: Any  # the data prediction it used, a vector like x
    h: float  # its increment of half log-SNR


@dataclass(frozen=True)
class DPMSolverPP(MultistepSolver):
    """Multistep DPM-Solver++, "2M": one evaluation a step, data prediction, order 2 from the second step on.

        x_s = sigma_s/sigma_t x + alpha_s (1 - e^{-h}) D,   D = (1 + 1/(2r)) D_t - 1/(2r) D_before,   r = h_before/h

    The first step has D = D_t (order 1 in one step, so order 2 in all). order=1 is that step throughout.
    Lu et al. 2022, DPM-Solver++, algorithm 2. Raises ValueError for an order other than 1 or 2.
    """

    order: int = 2

    family = "ode"
    evals_per_step = 1
    source = "Lu et al. 2022, DPM-Solver++"
    integrates = (Field,)
    stochasticity = 0.0

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order not in (1, 2):
            raise ValueError(f"order = {self.order!r} must be 1 or 2")

    def step(  # type: ignore[override]
        self, field: Field, x: Any, t: float, s: float, draw: Callable[..., Any], past: Past | None
    ) -> tuple[Any, Past | None]:
        p = field.process
        h = p.half_log_snr(s) - p.half_log_snr(t)
        data = field.data(t, x)
        if self.order == 1 or past is None:
            D = data
        else:
            r = past.h / h
            D = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * past.data
        x = p.sigma(s) / p.sigma(t) * x - p.alpha(s) * expm1(-h) * D
        return x, Past(data, h) if self.order == 2 else None

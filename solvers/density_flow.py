"""The probability flow of a field together with the log-density along it.

Every linear process has the flow dy = eps dnu in y = x/alpha, with nu = sigma/alpha, so log p(y) falls at the rate
alpha div_x eps per nu. Written for x/S with S = sqrt(alpha^2 + sigma^2), whose spread the flow keeps near 1, and by
u = log nu, the negative half log-SNR,

    d(x/S)/du = k eps - k^2 x/S,   dl/du = sigma div_x eps - d k^2,   k = sigma/S,
    log p_t(x_t) = log p_T(x_T) + d log(S_T/S_t) + l_T - l_t.

So the part of the divergence that a unit normal law has is integrated in closed form, and no derivative of alpha or sigma
is needed. Chen et al. 2018 (the rate), Song et al. 2021 (the flow).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from halfbridge.solvers.algebra import Combine, Evaluate, NotLinear
from halfbridge.solvers.divergence import Hutchinson, HutchPP, divergence_terms
from halfbridge.solvers.field import Field, view_coefficients
from halfbridge.solvers.plan import Plan, trace
from halfbridge.solvers.problems import ODE
from halfbridge.solvers.processes import Process
from halfbridge.solvers.runner import NonFiniteError, execute
from halfbridge.solvers.solver import Solver

__all__ = ["DensityFlow", "log_spread"]


def log_spread(process: Process, t: float) -> float:
    """log S(t) = log sqrt(alpha^2 + sigma^2)."""
    return math.log(math.hypot(process.alpha(t), process.sigma(t)))


class DensityFlow:
    """eps and the rate of l of the flow of `field`, for states like x0; counts evaluations of the field in `nfe`.

    l has a row for each of the `count` independent estimates that `method` makes of a divergence, with the same probes
    at every time: each row is an integral of its own, and their spread is the error of their mean.
    """

    def __init__(self, field: Field, x0: torch.Tensor, method: Any, first: int) -> None:
        self.field, self.method, self.first, self.nfe = field, method, first, 0
        self.shape, self.dtype, self.d = x0.shape, x0.dtype, math.prod(x0.shape[1:])
        self.count = method.count(self.d) if isinstance(method, (Hutchinson, HutchPP)) else 1

    def noise(self, t: float, x: torch.Tensor) -> torch.Tensor:
        """eps (batch, d), float64, for x (batch, d)."""
        self.nfe += 1
        c_x, c_p = self._coefficients(t)
        raw = self.field(t, self._state(x)).raw
        eps: torch.Tensor = c_x * x + c_p * raw.double().reshape(x.shape)
        self._check_finite(t, eps)
        return eps

    def noise_and_divergence(self, t: float, x: torch.Tensor, draw: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """eps (batch, d) and the estimates of div_x eps (count, batch), float64, for x (batch, d).

        The field sees x in x0's shape and dtype. The part of eps that is a multiple of x has its exact divergence.
        """

        def predict(x: torch.Tensor) -> torch.Tensor:
            self.nfe += 1
            raw: torch.Tensor = self.field(t, x).raw
            return raw

        c_x, c_p = self._coefficients(t)
        raw, terms = divergence_terms(predict, self._state(x), self.method, draw=draw, first=self.first)
        eps = c_x * x + c_p * raw.double().reshape(x.shape)
        div = c_x * self.d + c_p * terms.double()
        self._check_finite(t, eps, div)
        return eps, div

    def _state(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype).reshape(self.shape)

    def _coefficients(self, t: float) -> tuple[float, float]:
        """eps = c_x x + c_p prediction."""
        p = self.field.process
        return view_coefficients("noise", self.field.predicts, p.alpha(t), p.sigma(t))

    def _check_finite(self, t: float, *found: torch.Tensor) -> None:
        bad = sum(int((~torch.isfinite(value)).sum()) for value in found)
        if bad:
            raise NonFiniteError(
                f"{bad} of {sum(value.numel() for value in found)} entries of the field and its divergence are infinite or "
                f"NaN at t = {t:.6g}; check the field there, or pass a later t_min"
            )

    def rates(self, t: float, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """eps (batch, d) and dl/du (count, batch) at x (batch, d), float64."""
        p = self.field.process
        eps, div = self.noise_and_divergence(t, x)
        k = p.sigma(t) / math.hypot(p.alpha(t), p.sigma(t))
        return eps, p.sigma(t) * div - self.d * k * k

    def on_grid(self, solver: Solver, times: Sequence[float], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (batch, d) and l (count, batch) at the last of the increasing `times`, l = 0 at the first, by `solver`.

        l rides along as `count` more elements of the state, so it gets the order of the solver: on a Field as elements
        whose noise prediction is dl/dnu, which makes d(alpha l/alpha) = that dnu; on an ODE by its rate in t.
        """
        state = torch.cat([x, x.new_zeros(len(x), self.count)], dim=1)
        plan = self._plan(solver, times)
        last = self.field.process.alpha(times[-1]) if isinstance(plan.problem, Field) else 1.0
        end = execute(plan, plan.problem, state)
        return end[:, : self.d], end[:, self.d :].T / last

    def _plan(self, solver: Solver, times: Sequence[float]) -> Plan:
        """The plan of `solver` on the state with l: as a Field if it is deterministic there, else as an ODE."""
        p = self.field.process

        def noise(t: float, state: torch.Tensor) -> torch.Tensor:
            eps, rate = self.rates(t, state[:, : self.d])
            return torch.cat([eps, rate.T / p.nu(t)], dim=1)

        def drift(t: float, state: torch.Tensor) -> torch.Tensor:
            x = state[:, : self.d]
            eps, rate = self.rates(t, x)
            du = p.diffusion(t) ** 2 / (2.0 * p.sigma(t) ** 2)  # du/dt
            return torch.cat([p.drift_rate(t) * x + p.sigma(t) * du * eps, du * rate.T], dim=1)

        candidates: tuple[Field | ODE, ...] = (Field(p, noise), ODE(drift))
        for problem in candidates:
            made = _deterministic(solver, problem, times) if isinstance(problem, solver.integrates) else None
            if made is not None:
                return made
        raise ValueError(
            f"solver = {solver!r} is not deterministic, and only the probability flow has a log-density along its path; "
            "pass a solver without noise, such as hb.DPMSolver(order=3), hb.Heun() or hb.DDIM(), or hb.elbo for the SDE"
        )


def _deterministic(solver: Solver, problem: Field | ODE, times: Sequence[float]) -> Plan | None:
    """The plan of the run; None where sampling (on a Field, from noise to data) draws normals or does more than combine."""
    up = np.array(times)
    down = up[::-1].copy()
    try:
        made = trace(solver, problem, down)
        plain = all(isinstance(op, (Evaluate, Combine)) for step in made.steps for op in step.ops)
        return trace(solver, problem, up) if plain and not made.draws else None
    except NotLinear as error:
        raise NotLinear(
            f"solver = {solver!r} has no plan ({error}), so it is not known what its step makes of the log-density; pass "
            "a solver that combines linearly, or 'dopri8'"
        ) from error
    except (AttributeError, TypeError):
        if isinstance(problem, Field):
            raise
        return None  # a step for a Field: an ODE has no process

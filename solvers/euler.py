"""Euler-Maruyama, the scheme that takes every kind of problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halfbridge.solvers.field import Field
from halfbridge.solvers.problems import ODE
from halfbridge.solvers.solver import Solver

__all__ = ["EulerMaruyama"]


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x_s = x + (s - t) f(t, x) + g(t, x) sqrt|s - t| z.

    On a Field: the reverse SDE, f = a x - g^2 score, at the time t that the step leaves. On an ODE: Euler's method.
    Weak order 1; strong order 1 where g does not depend on x, else 1/2. Maruyama 1955; Kloeden and Platen 1992, 10.2.
    """

    order = 1
    family = "sde"
    evals_per_step = 1
    source = "Maruyama 1955"
    stochasticity = 1.0

    def step(self, problem: Any, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        if isinstance(problem, ODE):
            return x + (s - t) * problem.drift(t, x)
        sde = problem.reverse_sde() if isinstance(problem, Field) else problem
        return x + (s - t) * sde.drift(t, x) + math.sqrt(abs(s - t)) * sde.increment(t, x, draw)

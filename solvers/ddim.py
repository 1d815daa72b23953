"""DDIM: the family of non-Markov samplers between the probability flow and the ancestral chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halfbridge.solvers.field import Field
from halfbridge.solvers.solver import Solver

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha(s) D + sqrt(sigma(s)^2 - c^2) eps + c z, with c = eta sqrt(v) sigma(s)/sigma(t).

    v is the variance of the forward transition from s to t. eta = 0 is DPM-Solver-1, eta = 1 the posterior step of
    Ancestral. As the steps shrink it solves the member l = eta of the marginal-preserving family. Order 1.
    Song, Meng and Ermon 2021. Raises ValueError for eta outside [0, 1].
    """

    eta: float = 0.0

    order = 1
    evals_per_step = 1
    source = "Song, Meng and Ermon 2021"
    integrates = (Field,)

    def __post_init__(self) -> None:
        if not isinstance(self.eta, (int, float)) or not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta = {self.eta!r} must lie in [0, 1] (0: deterministic, 1: ancestral)")

    @property
    def family(self) -> str:  # type: ignore[override]
        return "ode" if self.eta == 0.0 else "sde"

    @property
    def stochasticity(self) -> float:  # type: ignore[override]
        return self.eta

    def step(self, field: Field, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        p = field.process
        m = field(t, x)
        if self.eta == 0.0:
            return p.alpha(s) * m.data + p.sigma(s) * m.noise
        _, v = p.transition(s, t)
        share = self.eta * math.sqrt(v) / p.sigma(t)  # c / sigma(s); at most 1, so the root below never cancels badly
        direct = p.sigma(s) * math.sqrt((1.0 - share) * (1.0 + share))
        return p.alpha(s) * m.data + direct * m.noise + share * p.sigma(s) * draw()

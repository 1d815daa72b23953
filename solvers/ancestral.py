"""One-step samplers that reverse the forward chain's own transitions.

From s to t > s the process moves by x_t = r x_s + sqrt(v) z, with r = alpha(t)/alpha(s) and
v = sigma(t)^2 - r^2 sigma(s)^2 (`process.transition`, which forms v without cancellation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halfbridge.solvers.field import Field
from halfbridge.solvers.solver import Solver

__all__ = ["Ancestral", "ReverseDiffusion"]


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """x_s = (2 - r) x + v score + sqrt(v) z: the forward chain's increments, run backwards.

    In DDPM's letters (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z. Weak order 1. Song et al. 2021, appendix E.
    """

    order = 1
    family = "sde"
    evals_per_step = 1
    source = "Song et al. 2021"
    integrates = (Field,)
    stochasticity = 1.0

    def step(self, field: Field, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        r, v = field.process.transition(s, t)
        return (2.0 - r) * x + v * field.score(t, x) + math.sqrt(v) * draw()


@dataclass(frozen=True)
class Ancestral(Solver):
    """x_s = (x + v score)/r + c z, whose mean is the exact E[x_s | x_t] (Tweedie's formula for one transition).

    variance="posterior"   c^2 = v sigma(s)^2/sigma(t)^2, exact when the data are a point (DDPM's "small")
    variance="transition"  c^2 = v, DDPM's "large"
    Weak order 1. Ho, Jain and Abbeel 2020; Song et al. 2021, appendix F, for the variance-exploding case.
    """

    variance: str = "posterior"

    order = 1
    family = "sde"
    evals_per_step = 1
    source = "Ho et al. 2020"
    integrates = (Field,)
    stochasticity = 1.0

    def __post_init__(self) -> None:
        if self.variance not in ("posterior", "transition"):
            raise ValueError(f"variance = {self.variance!r} is not one of 'posterior', 'transition'")

    def step(self, field: Field, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        p = field.process
        r, v = p.transition(s, t)
        c = math.sqrt(v)
        if self.variance == "posterior":
            c *= p.sigma(s) / p.sigma(t)
        return (x + v * field.score(t, x)) / r + c * draw()

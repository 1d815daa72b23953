"""Heun's method on the probability flow, deterministic and with EDM's churn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from halfbridge.solvers.field import Field
from halfbridge.solvers.problems import ODE
from halfbridge.solvers.processes import Process
from halfbridge.solvers.solver import Solver

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(Solver):
    """The trapezoidal rule on d(x/alpha) = eps d nu, the flow that every linear process shares (nu = sigma/alpha):

        y' = y + (nu_s - nu_t) eps(t, x),   y_s = y + (nu_s - nu_t) (eps(t, x) + eps(s, alpha_s y'))/2,   y = x/alpha.

    churn > 0 first raises the noise level from nu to (1 + gamma) nu with fresh noise of standard deviation s_noise, where
    s_min <= nu <= s_max; gamma = min(churn/n, sqrt 2 - 1), n the steps of the grid. The raised time may pass T.
    s_noise other than 1 gives a bias that finer grids do not remove; the order is that of s_noise = 1.
    On an ODE: the trapezoidal rule in the problem's own time; on `field.probability_flow()`, where the last time has no
    noise, its last step is Euler's. Order 2, two evaluations a step.
    Karras et al. 2022, algorithms 1 (the ODE) and 2 (churn). Raises ValueError for parameters out of range.
    """

    churn: float = 0.0
    s_noise: float = 1.0
    s_min: float = 0.0
    s_max: float = math.inf

    order = 2
    evals_per_step = 2
    source = "Karras et al. 2022"
    integrates = (Field, ODE)
    _steps: ClassVar[int | None] = None  # of the run: set on the copy that `on` returns

    def __post_init__(self) -> None:
        for name, low in (("churn", 0.0), ("s_noise", 0.0), ("s_min", 0.0)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= low):
                raise ValueError(f"{name} = {value!r} must be finite and at least {low:g}")
        if not self.s_max > self.s_min:
            raise ValueError(f"s_max = {self.s_max!r} must exceed s_min = {self.s_min!r} (both are noise levels nu)")

    @property
    def family(self) -> str:  # type: ignore[override]
        return "sde" if self.churn else "ode"

    @property
    def stochasticity(self) -> float | None:  # type: ignore[override]
        return None if self.churn else 0.0

    def on(self, process: Process | None, grid: Sequence[float]) -> Heun:
        return self._bound(_steps=len(grid) - 1)

    def check(self, problem: Any) -> None:
        super().check(problem)
        if self.churn and not isinstance(problem, Field):
            raise TypeError(f"churn = {self.churn:g} raises the noise level of a Field; on an ODE use Heun(churn=0)")

    def step(self, field: Any, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        if isinstance(field, ODE):
            return self._ode_step(field, x, t, s)
        x, t = self._raise_noise(field, x, t, draw)
        p = field.process
        h = p.nu(s) - p.nu(t)
        eps = field.noise(t, x)
        y = x / p.alpha(t)
        eps_s = field.noise(s, p.alpha(s) * (y + h * eps))
        return p.alpha(s) * (y + h / 2 * (eps + eps_s))

    def finish(self, field: Field, x: Any, t: float, draw: Callable[..., Any]) -> Any:
        x, t = self._raise_noise(field, x, t, draw)
        return field.data(t, x)

    def _ode_step(self, ode: ODE, x: Any, t: float, s: float) -> Any:
        d = ode.drift(t, x)
        euler = x + (s - t) * d
        if ode.process is not None and ode.process.sigma(s) == 0.0:
            return euler
        return x + (s - t) / 2 * (d + ode.drift(s, euler))

    def _raise_noise(self, field: Field, x: Any, t: float, draw: Callable[..., Any]) -> tuple[Any, float]:
        p = field.process
        nu = p.nu(t)
        if not self.churn or not self.s_min <= nu <= self.s_max:
            return x, t
        if self._steps is None:
            raise ValueError("churn is divided by the number of steps: call step on solver.on(process, grid)")
        gamma = min(self.churn / self._steps, math.sqrt(2.0) - 1.0)
        try:
            raised = p.time_at(-math.log(nu * (1.0 + gamma)))
            alpha = p.alpha(raised)
        except ValueError as error:
            raise ValueError(
                f"churn = {self.churn:g} raises the noise level at t = {t:.6g} from nu = {nu:.6g} to {nu * (1 + gamma):.6g}, "
                f"which {p!r} does not reach; pass s_max below {nu:.6g}"
            ) from error
        spread = nu * math.sqrt(gamma * (2.0 + gamma)) * self.s_noise
        return alpha / p.alpha(t) * x + alpha * spread * draw(), raised

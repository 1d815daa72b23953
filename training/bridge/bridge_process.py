"""The process of a bridge's fields: the reference, or its time reversal, with some noise at the end already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfbridge.solvers.elementary import exp, log, sqrt
from halfbridge.solvers.processes import Process
from halfbridge.training.bridge.direction import Direction

__all__ = ["BridgeProcess"]

ROUNDING = 1e-6  # of a half log-SNR, which may come in float32


@dataclass(frozen=True)
class BridgeProcess(Process):
    """A linear process that a `Field` may carry a bridge along, in a time u that falls from T to 0.

    direction  BACKWARD: dX = a X du + g dW with a, g of `reference`, u = t, so solvers go to the start. FORWARD: its reversal,
               a(T - u) with the other sign and g(T - u), u = T - t: to the end
    spread     standard deviation of the noise that there is at u = 0. It is in no coefficient of the equation: a, g and
               `transition` are those of the reference. But it is what keeps solvers from taking their last step, from the
               noise to the data, to be Tweedie's: the fields of a bridge are no scores of noised data

        alpha(u)^2 = alpha_t^2,            nu(u)^2 = spread^2 + nu_t^2                              BACKWARD
        alpha(u)^2 = (alpha_t/alpha_T)^2,  nu(u)^2 = spread^2 + alpha_T^2 (nu_T^2 - nu_t^2)         FORWARD

    `t_min` is 0: grids end there. It has no prior of its own: ValueError for `prior_std`.
    """

    reference: Process
    direction: Direction
    spread: float = 1.0

    def __post_init__(self) -> None:
        self._store_positive("spread")

    @property
    def T(self) -> float:  # type: ignore[override]
        """That of the reference."""
        return self.reference.T

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """0."""
        return 0.0

    @property
    def prior_std(self) -> float:
        """None: a bridge sets out from one of its own ends."""
        where = "T" if self.direction is Direction.BACKWARD else "0"
        raise ValueError(f"prior = None, but a bridge sets out from a law of its own; pass prior= the law at {where}")

    def _time(self, u: Any) -> Any:
        """t, or u from t."""
        return u if self.direction is Direction.BACKWARD else self.T - u

    def _nu_squared(self, u: Any) -> Any:
        p, t = self.reference, self._time(u)
        square = (p._sigma(t) / p._alpha(t)) ** 2
        if self.direction is Direction.FORWARD:
            square = p._sigma(self.T) ** 2 - p._alpha(self.T) ** 2 * square
        return self.spread**2 + square

    def _alpha(self, u: Any) -> Any:
        alpha = self.reference._alpha(self._time(u))
        return alpha if self.direction is Direction.BACKWARD else alpha / self.reference._alpha(self.T)

    def _sigma(self, u: Any) -> Any:
        return self._alpha(u) * sqrt(self._nu_squared(u))

    def _half_log_snr(self, u: Any) -> Any:
        return -0.5 * log(self._nu_squared(u))

    def _drift_rate(self, u: Any) -> Any:
        rate = self.reference._drift_rate(self._time(u))
        return rate if self.direction is Direction.BACKWARD else -rate

    def _diffusion(self, u: Any) -> Any:
        return self.reference._diffusion(self._time(u))

    def _time_at(self, half_log_snr: Any) -> Any:
        p, ends = self.reference, (self._half_log_snr(self.T), self._half_log_snr(0.0))
        low, high = half_log_snr.detach().aminmax() if _several(half_log_snr) else (half_log_snr, half_log_snr)
        slack = ROUNDING * max(1.0, *map(abs, ends))
        for level in (low, high):
            if not ends[0] - slack <= level <= ends[1] + slack:
                raise ValueError(
                    f"{self!r}: a half log-SNR of {float(level):.9g} lies outside those of [0, T], {ends[0]:.9g} to "
                    f"{ends[1]:.9g}; pass one between"
                )
        # what is left of a difference may be rounding, at the times where the noise of the reference is little
        square = exp(-2.0 * _within(half_log_snr, *ends)) - self.spread**2
        if self.direction is Direction.FORWARD:
            square = (p._sigma(self.T) ** 2 - square) / p._alpha(self.T) ** 2
        level = -0.5 * log(_within(square, 0.0, math.inf))
        t = p._time_at(_within(level, p._half_log_snr(self.T), p._half_log_snr(0.0)))
        return self._time(_within(t, 0.0, self.T))

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        if self.direction is Direction.BACKWARD:
            return self.reference.transition(s, t)
        r, v = self.reference.transition(self.T - t, self.T - s)
        return 1.0 / r, v / r**2


def _several(x: Any) -> bool:
    return isinstance(x, Tensor) and x.numel() > 0


def _within(x: Any, low: float, high: float) -> Any:
    """The nearest to x, a float or a tensor, in [low, high]."""
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)

"""Processes of unit stationary variance: VP, CosineVP and SubVP."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from halfbridge.solvers.elementary import (
    asinh,
    atan2,
    exp,
    expm1,
    log,
    log_expm1,
    logistic,
    sin,
    softplus,
    sqrt,
)
from halfbridge.solvers.processes.base import Process


class BetaClock(Process):
    """dX = -beta/2 X dt + sqrt(beta) dW: alpha = exp(-B/2), sigma^2 = 1 - exp(-B) on the clock B(t) = int_0^t beta.

    A subclass gives the clock, its rate beta, its inverse and its increment between two times.
    """

    @abstractmethod
    def _clock(self, t: Any) -> Any: ...

    @abstractmethod
    def _beta(self, t: Any) -> Any: ...

    @abstractmethod
    def _time_on_clock(self, B: Any) -> Any: ...

    @abstractmethod
    def _elapsed(self, s: float, t: float) -> float:
        """B(t) - B(s) without cancellation."""

    @property
    def prior_std(self) -> float:
        return 1.0

    def _alpha(self, t: Any) -> Any:
        return exp(-self._clock(t) / 2)

    def _sigma(self, t: Any) -> Any:
        return sqrt(-expm1(-self._clock(t)))

    def _half_log_snr(self, t: Any) -> Any:
        return -log_expm1(self._clock(t)) / 2

    def _time_at(self, half_log_snr: Any) -> Any:
        return self._time_on_clock(softplus(-2 * half_log_snr))

    def _drift_rate(self, t: Any) -> Any:
        return -self._beta(t) / 2

    def _diffusion(self, t: Any) -> Any:
        return sqrt(self._beta(t))

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        elapsed = self._elapsed(s, t)
        return exp(-elapsed / 2), -expm1(-elapsed)


@dataclass(frozen=True)
class LinearBeta(BetaClock):
    """The clock B = beta_min t + (beta_max - beta_min) t^2 / 2 on [0, 1]."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    T: float = field(default=1.0, init=False, repr=False)
    t_min: float = field(default=1e-3, init=False, repr=False)

    def __post_init__(self) -> None:
        self._store_positive("beta_min", "beta_max")
        if self.beta_max < self.beta_min:
            raise ValueError(
                f"{type(self).__name__}: `beta_max` = {self.beta_max:g} is below `beta_min` = {self.beta_min:g}; "
                "the noise rate grows with t, so swap them"
            )

    def _clock(self, t: Any) -> Any:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _beta(self, t: Any) -> Any:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _time_on_clock(self, B: Any) -> Any:
        # The root of the quadratic B(t) = B in the form that subtracts nothing.
        return 2 * B / (self.beta_min + sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B))

    def _elapsed(self, s: float, t: float) -> float:
        return (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (s + t))


@dataclass(frozen=True)
class VP(LinearBeta):
    """dX = -beta/2 X dt + sqrt(beta) dW with beta(t) = beta_min + (beta_max - beta_min) t.

    alpha = exp(-B/2), sigma^2 = 1 - exp(-B), B = beta_min t + (beta_max - beta_min) t^2 / 2; t in [0, 1], sampling to
    1e-3; prior N(0, I). ValueError unless 0 < beta_min <= beta_max. Song et al. 2021, appendix C.
    """


@dataclass(frozen=True)
class SubVP(LinearBeta):
    """dX = -beta/2 X dt + sqrt(beta (1 - exp(-2B))) dW, beta and B as in VP.

    alpha = exp(-B/2), sigma = 1 - exp(-B); t in [0, 1], sampling to 1e-3; prior N(0, I). ValueError unless
    0 < beta_min <= beta_max. Song et al. 2021, appendix C.
    """

    def _sigma(self, t: Any) -> Any:
        return -expm1(-self._clock(t))

    def _half_log_snr(self, t: Any) -> Any:
        # -log(2 sinh(B/2)), written so that sinh cannot overflow.
        B = self._clock(t)
        return -B / 2 - log(-expm1(-B))

    def _time_at(self, half_log_snr: Any) -> Any:
        return self._time_on_clock(2 * asinh(exp(-half_log_snr) / 2))

    def _diffusion(self, t: Any) -> Any:
        return sqrt(self._beta(t) * -expm1(-2 * self._clock(t)))

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        # (1 - pq)^2 - q (1 - p)^2 = (1 - q)(1 - p^2 q) with p = exp(-B_s), q = exp(-(B_t - B_s)).
        elapsed = self._elapsed(s, t)
        return exp(-elapsed / 2), expm1(-elapsed) * expm1(-self._clock(s) - self._clock(t))


@dataclass(frozen=True)
class CosineVP(Process):
    """dX = -beta/2 X dt + sqrt(beta) dW with beta(t) = pi/(1+s) tan u, u(t) = pi/2 (t+s)/(1+s).

    alpha = cos u(t) / cos u(0), sigma^2 = 1 - alpha^2; t in [0, 0.9946], sampling to 1e-3; prior N(0, I). beta is
    infinite at t = 1, so times t >= 1 are a ValueError, as is s <= 0. Nichol & Dhariwal 2021, in continuous time.
    """

    s: float = 0.008
    T: float = field(default=0.9946, init=False, repr=False)
    t_min: float = field(default=1e-3, init=False, repr=False)

    def __post_init__(self) -> None:
        self._store_positive("s")

    # u(t) = u_0 + rate t = pi/2 - rate (1 - t): sin u from the first form and cos u from the second lose nothing.

    @property
    def prior_std(self) -> float:
        return 1.0

    @property
    def _rate(self) -> float:
        return math.pi / (2 * (1 + self.s))

    @property
    def _u_0(self) -> float:
        return self._rate * self.s

    def _sin_u(self, t: Any) -> Any:
        return sin(self._u_0 + self._rate * t)

    def _cos_u(self, t: Any) -> Any:
        return sin(self._rate * (1 - t))

    def _alpha(self, t: Any) -> Any:
        return self._cos_u(t) / self._cos_u(0.0)

    def _sin2_minus_sin2_0(self, t: Any) -> Any:
        delta = self._rate * t
        return sin(delta) * sin(2 * self._u_0 + delta)

    def _sigma(self, t: Any) -> Any:
        return sqrt(self._sin2_minus_sin2_0(t)) / self._cos_u(0.0)

    def _half_log_snr(self, t: Any) -> Any:
        return log(self._cos_u(t)) - log(self._sin2_minus_sin2_0(t)) / 2

    def _time_at(self, half_log_snr: Any) -> Any:
        # With q = sin^2 u - sin^2 u_0, both terms of sin(u - u_0) are positive multiples of q.
        sin_0, cos_0 = sin(self._u_0), self._cos_u(0.0)
        q = cos_0**2 * logistic(-2 * half_log_snr)
        sin_u, cos_u = sqrt(sin_0**2 + q), cos_0 * sqrt(logistic(2 * half_log_snr))
        sin_delta = q * (cos_0 / (sin_u + sin_0) + sin_0 / (cos_0 + cos_u))
        return atan2(sin_delta, cos_u * cos_0 + sin_u * sin_0) / self._rate

    def _drift_rate(self, t: Any) -> Any:
        return -self._rate * self._sin_u(t) / self._cos_u(t)

    def _diffusion(self, t: Any) -> Any:
        return sqrt(-2 * self._drift_rate(t))

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        # 1 - r^2 = sin(u_t - u_s) sin(u_t + u_s) / cos^2 u_s; the second sine from the side of pi/2 it lies on.
        cos_s, cos_t = self._cos_u(s), self._cos_u(t)
        sin_sum = sin(2 * self._u_0 + self._rate * (s + t)) if s + t < 1 else sin(self._rate * ((1 - s) + (1 - t)))
        return cos_t / cos_s, sin(self._rate * (t - s)) * sin_sum / cos_s**2

    def _check_time(self, low: float, high: float) -> None:
        super()._check_time(low, high)
        if high >= 1:
            raise ValueError(f"CosineVP: `t` = {high!r} is not below 1, where alpha reaches 0; T = {self.T:g}")

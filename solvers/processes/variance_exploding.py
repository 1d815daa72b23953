"""Processes that keep the data and add noise, alpha = 1, up to a large level: VE and EDM."""

import math
from dataclasses import dataclass, field
from typing import Any

from halfbridge.solvers.elementary import exp, expm1, log, log_expm1, softplus, sqrt
from halfbridge.solvers.processes.base import Process


class Exploding(Process):
    """dX = g(t) dW: alpha = 1."""

    # 0 * t keeps the shape of t and its place in the autograd graph.

    def _alpha(self, t: Any) -> Any:
        return 1.0 + 0.0 * t

    def _drift_rate(self, t: Any) -> Any:
        return 0.0 * t

    def _half_log_snr(self, t: Any) -> Any:
        return -log(self._sigma(t))


@dataclass(frozen=True)
class VE(Exploding):
    """dX = g dW with g(t) = s(t) sqrt(2 log(sigma_max/sigma_min)), s(t) = sigma_min (sigma_max/sigma_min)^t.

    alpha = 1, sigma^2 = s(t)^2 - sigma_min^2, the exact kernel from t = 0; t in [0, 1], sampling to 1e-5; prior of
    standard deviation sigma(1). ValueError unless 0 < sigma_min < sigma_max. Song et al. 2021, appendix C.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    T: float = field(default=1.0, init=False, repr=False)
    t_min: float = field(default=1e-5, init=False, repr=False)

    def __post_init__(self) -> None:
        self._store_positive("sigma_min", "sigma_max")
        _check_levels(self, self.sigma_min, self.sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log1p((self.sigma_max - self.sigma_min) / self.sigma_min)

    def _sigma(self, t: Any) -> Any:
        return self.sigma_min * sqrt(expm1(2 * self._log_ratio * t))

    def _half_log_snr(self, t: Any) -> Any:
        return -log(self.sigma_min) - log_expm1(2 * self._log_ratio * t) / 2

    def _time_at(self, half_log_snr: Any) -> Any:
        return softplus(-2 * (half_log_snr + log(self.sigma_min))) / (2 * self._log_ratio)

    def _diffusion(self, t: Any) -> Any:
        return self.sigma_min * math.sqrt(2 * self._log_ratio) * exp(self._log_ratio * t)

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        return 1.0, (self.sigma_min * exp(self._log_ratio * s)) ** 2 * expm1(2 * self._log_ratio * (t - s))


@dataclass(frozen=True)
class EDM(Exploding):
    """dX = sqrt(2 t) dW: time is the noise level.

    alpha = 1, sigma = t; t in [0, sigma_max], sampling to sigma_min; prior of standard deviation sigma_max. ValueError
    unless 0 < sigma_min < sigma_max. Karras et al. 2022, table 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    T: float = field(init=False, repr=False)
    t_min: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._store_positive("sigma_min", "sigma_max")
        _check_levels(self, self.sigma_min, self.sigma_max)
        object.__setattr__(self, "T", self.sigma_max)
        object.__setattr__(self, "t_min", self.sigma_min)

    def _sigma(self, t: Any) -> Any:
        return t

    def _time_at(self, half_log_snr: Any) -> Any:
        return exp(-half_log_snr)

    def _diffusion(self, t: Any) -> Any:
        return sqrt(2 * t)

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        return 1.0, (t - s) * (t + s)


def _check_levels(process: Process, sigma_min: float, sigma_max: float) -> None:
    if not sigma_min < sigma_max:
        raise ValueError(
            f"{type(process).__name__}: `sigma_min` = {sigma_min:g} must be below `sigma_max` = {sigma_max:g}"
        )

"""Time-homogeneous diffusions: OU and Brownian."""

from dataclasses import dataclass, field
from typing import Any

from halfbridge.solvers.elementary import exp, expm1, log, log_expm1, softplus, sqrt
from halfbridge.solvers.processes.base import Process
from halfbridge.solvers.processes.variance_exploding import Exploding


@dataclass(frozen=True)
class OU(Process):
    """dX = -theta X dt + g dW, the Ornstein-Uhlenbeck process.

    alpha = exp(-theta t), sigma^2 = g^2/(2 theta) (1 - exp(-2 theta t)); t in [0, T], sampling to 1e-3; the prior is
    the stationary law, of standard deviation g / sqrt(2 theta). ValueError unless theta, g > 0 and T > 1e-3.
    Uhlenbeck & Ornstein 1930.
    """

    theta: float = 0.5
    g: float = 1.0
    T: float = 5.0
    t_min: float = field(default=1e-3, init=False, repr=False)

    def __post_init__(self) -> None:
        self._store_positive("theta", "g", "T")
        self._check_end()

    @property
    def prior_std(self) -> float:
        return self.g / sqrt(2 * self.theta)

    def _alpha(self, t: Any) -> Any:
        return exp(-self.theta * t)

    def _sigma(self, t: Any) -> Any:
        return self.prior_std * sqrt(-expm1(-2 * self.theta * t))

    def _half_log_snr(self, t: Any) -> Any:
        return -log(self.prior_std) - log_expm1(2 * self.theta * t) / 2

    def _time_at(self, half_log_snr: Any) -> Any:
        return softplus(-2 * (half_log_snr + log(self.prior_std))) / (2 * self.theta)

    def _drift_rate(self, t: Any) -> Any:
        return 0.0 * t - self.theta

    def _diffusion(self, t: Any) -> Any:
        return 0.0 * t + self.g

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        return exp(-self.theta * (t - s)), -(self.prior_std**2) * expm1(-2 * self.theta * (t - s))


@dataclass(frozen=True)
class Brownian(Exploding):
    """dX = g dW.

    alpha = 1, sigma = g sqrt(t); t in [0, T], sampling to 1e-3. It has no stationary law: `prior_std` is sigma(T), the
    spread that the noise alone has reached by T. ValueError unless g > 0 and T > 1e-3. Wiener 1923.
    """

    g: float = 1.0
    T: float = 1.0
    t_min: float = field(default=1e-3, init=False, repr=False)

    def __post_init__(self) -> None:
        self._store_positive("g", "T")
        self._check_end()

    def _sigma(self, t: Any) -> Any:
        return self.g * sqrt(t)

    def _time_at(self, half_log_snr: Any) -> Any:
        return (exp(-half_log_snr) / self.g) ** 2

    def _diffusion(self, t: Any) -> Any:
        return 0.0 * t + self.g

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        return 1.0, self.g**2 * (t - s)

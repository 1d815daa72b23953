"""A process given by its alpha and sigma alone: LinearProcess."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbridge.solvers.processes.base import Process

Schedule = Callable[[Tensor], Tensor | float]


@dataclass(frozen=True, init=False, repr=False)
class LinearProcess(Process):
    """dX = a X dt + g dW with the given alpha(t) and sigma(t): a = alpha'/alpha, g^2 = 2 sigma (sigma' - a sigma).

    `alpha`, `sigma`: functions of a 0-dim float64 tensor, written with torch functions so that autograd gives a and g
    (a tensor of times is mapped one by one). t in [0, T], sampling to t_min; prior of standard deviation sigma(T).
    Precision is that of the two functions; `time_at` solves for t to rounding and is differentiable once; `transition`
    loses the digits that the two half log-SNRs share.

    Spot checks on [t_min, T] refuse with ValueError an alpha or sigma that is not positive, a half log-SNR that does
    not decrease, a sigma(0) = 0 with alpha(0) != 1, and a value that changes with t but carries no gradient.
    """

    alpha_of: Schedule
    sigma_of: Schedule
    T: float
    t_min: float

    def __init__(self, alpha: Schedule, sigma: Schedule, T: float, t_min: float) -> None:
        for name, value in {"alpha_of": alpha, "sigma_of": sigma, "T": T, "t_min": t_min}.items():
            object.__setattr__(self, name, value)
        for name, function in (("alpha", alpha), ("sigma", sigma)):
            if not callable(function):
                raise TypeError(f"LinearProcess: `{name}` is a {type(function).__name__}; pass a function of a tensor")
        self._store_positive("T", "t_min")
        self._check_end()
        self._check_schedule()

    def __repr__(self) -> str:
        alpha, sigma = (getattr(f, "__name__", type(f).__name__) for f in (self.alpha_of, self.sigma_of))
        return f"LinearProcess({alpha}, {sigma}, T={self.T:g}, t_min={self.t_min:g})"

    def _alpha(self, t: Any) -> Any:
        return _like(t, self._values("alpha", _tensor(t)))

    def _sigma(self, t: Any) -> Any:
        return _like(t, self._values("sigma", _tensor(t)))

    def _drift_rate(self, t: Any) -> Any:
        alpha, slope = self._values_and_slopes("alpha", _tensor(t))
        return _like(t, slope / alpha)

    def _diffusion(self, t: Any) -> Any:
        u = _tensor(t)
        alpha, alpha_slope = self._values_and_slopes("alpha", u)
        sigma, sigma_slope = self._values_and_slopes("sigma", u)
        g2 = 2 * sigma * (sigma_slope - alpha_slope / alpha * sigma)
        bad = ~(g2 >= 0)
        if bad.any():
            i = u.detach()[bad].reshape(-1)[0].item()
            raise ValueError(
                f"{self!r}: g^2 = {g2.detach()[bad].reshape(-1)[0].item():.6g} at t = {i:.6g}; the half log-SNR must "
                "decrease there and sigma must have a finite slope (at t = 0 it often has none: use a later time)"
            )
        return _like(t, g2.sqrt())

    def _half_log_snr_slope(self, u: Tensor) -> Tensor:
        alpha, alpha_slope = self._values_and_slopes("alpha", u)
        sigma, sigma_slope = self._values_and_slopes("sigma", u)
        return alpha_slope / alpha - sigma_slope / sigma

    def _time_at(self, half_log_snr: Any) -> Any:
        if not isinstance(half_log_snr, Tensor):
            return self._solve(half_log_snr)
        flat = [self._solve(level) for level in half_log_snr.detach().reshape(-1).tolist()]
        t = half_log_snr.detach().new_tensor(flat).reshape(half_log_snr.shape)
        if not half_log_snr.requires_grad:
            return t
        # dt/dlambda by the implicit function theorem, on a term that is zero.
        return t + (half_log_snr - half_log_snr.detach()) / self._half_log_snr_slope(t)

    def _solve(self, level: float) -> float:
        """The time whose half log-SNR is `level`: Brent's method in log t, then two Newton steps (Brent 1973)."""
        from scipy.optimize import brentq

        if level >= self._level_at_zero:
            if level > self._level_at_zero:
                raise ValueError(
                    f"{self!r}: `half_log_snr` = {level!r} exceeds {self._level_at_zero!r}, its value at t = 0"
                )
            return 0.0

        def excess(log_t: float) -> float:
            # Bounded, since sigma may underflow to 0 far below t_min.
            return min(float(self._half_log_snr(math.exp(log_t))) - level, 1e3)

        low, high = self._bracket(level, excess)
        t = math.exp(brentq(excess, low, high, xtol=1e-14, rtol=1e-14))
        for _ in range(2):
            slope = self._half_log_snr_slope(torch.tensor(t, dtype=torch.float64, device="cpu")).item()
            if slope < 0:
                t -= (float(self._half_log_snr(t)) - level) / slope
        return t

    def _bracket(self, level: float, excess: Callable[[float], float]) -> tuple[float, float]:
        """log t on either side of the root, from [t_min, T] downward or, for levels below that of T, upward."""
        low, high = math.log(self.t_min), math.log(self.T)
        while excess(low) < 0 and low > -700:
            low, high = low - 3, low
        if excess(low) < 0:
            raise ValueError(f"{self!r}: `half_log_snr` = {level!r} is not reached down to t = {math.exp(low):.3g}")
        step = 1e-12
        while excess(high) > 0:
            try:
                excess(high + step)
                low, high, step = high, high + step, 4 * step
            except (ValueError, OverflowError) as error:
                # alpha or sigma ends before high + step: close in on where.
                step /= 8
                if step < 1e-13:
                    last = self._half_log_snr(self.T)
                    raise ValueError(
                        f"{self!r}: `half_log_snr` = {level!r} is below {last!r}, its value at T, and is not "
                        "reached after T while alpha and sigma are positive and finite"
                    ) from error
        return low, high

    @property
    def _level_at_zero(self) -> float:
        """The half log-SNR of the data; +inf as well where alpha and sigma cannot be evaluated at 0."""
        try:
            return float(self._half_log_snr(0.0))
        except ValueError:
            return math.inf

    def _values(self, name: str, t: Tensor) -> Tensor:
        """`alpha_of` or `sigma_of` at each entry of t."""
        function: Schedule = getattr(self, f"{name}_of")
        values = []
        for entry in t.reshape(-1).unbind():
            value = function(entry)
            if isinstance(value, float | int):
                value = torch.tensor(float(value), dtype=torch.float64, device=t.device)
            if not isinstance(value, Tensor) or value.ndim or value.dtype != torch.float64:
                got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"LinearProcess: `{name}` gave a {got} for a 0-dim float64 time; give the same kind")
            if not 0 <= value < math.inf or (name == "alpha" and value == 0):
                raise ValueError(
                    f"LinearProcess: {name}({entry.item():.6g}) = {value.item():.6g} must be positive and finite"
                )
            values.append(value)
        return torch.stack(values).reshape(t.shape) if values else t

    def _values_and_slopes(self, name: str, t: Tensor) -> tuple[Tensor, Tensor]:
        differentiate = t.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            u = t if differentiate else t.detach().clone().requires_grad_()
            values = self._values(name, u)
            slopes = None
            if values.requires_grad:
                (slopes,) = torch.autograd.grad(values.sum(), u, create_graph=differentiate, allow_unused=True)
            slopes = torch.zeros_like(values) if slopes is None else slopes
        return (values, slopes) if differentiate else (values.detach(), slopes.detach())

    def _check_schedule(self) -> None:
        times = np.unique(np.concatenate([np.linspace(self.t_min, self.T, 33), np.geomspace(self.t_min, self.T, 33)]))
        times[-1] = self.T
        t = torch.from_numpy(times)
        for name in ("alpha", "sigma"):
            values, slopes = self._values_and_slopes(name, t)
            if (values == 0).any():
                raise ValueError(f"LinearProcess: {name}({times[int(values.argmin())]:.6g}) = 0 must be positive")
            if not slopes.any() and (values != values[0]).any():
                raise ValueError(
                    f"LinearProcess: `{name}` changes with t but carries no gradient; write it with torch functions "
                    "(math functions and .item() cut the graph)"
                )
        levels = self._half_log_snr(t)
        rising = (levels[1:] >= levels[:-1]).nonzero()
        if len(rising):
            i = int(rising[0])
            raise ValueError(
                f"LinearProcess: log(alpha/sigma) must decrease in t, but it is {levels[i].item():.6g} at "
                f"t = {times[i]:.6g} and {levels[i + 1].item():.6g} at t = {times[i + 1]:.6g}"
            )
        try:
            start, noise = self._alpha(0.0), self._sigma(0.0)
        except ValueError:  # a schedule may have no value at 0 itself
            return
        if noise == 0 and abs(start - 1) > 1e-9:
            raise ValueError(
                f"LinearProcess: sigma(0) = 0 but alpha(0) = {start:.6g}; X_0 is the data: divide alpha by it"
            )


def _tensor(t: Any) -> Tensor:
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")


def _like(t: Any, result: Tensor) -> Any:
    return result if isinstance(t, Tensor) else result.item()

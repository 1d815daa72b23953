"""What every forward process offers, for floats, arrays and tensors alike."""

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.solvers.elementary import expm1, log

Times = TypeVar("Times", float, Tensor, NDArray[np.float64])


class Process(ABC):
    """A linear forward SDE dX = a(t) X dt + g(t) dW with kernel X_t | X_0 = x0 ~ N(alpha(t) x0, sigma(t)^2 I).

    Time runs from 0 (data) to T (noise). Every function of time takes a number and gives a float; a float tensor, and
    gives a tensor of its dtype, shape and device, computed in float64 and differentiable (integer tensors give
    float64); or a numpy array, and gives a float64 array. A negative or non-finite time is a ValueError; times beyond T
    are taken wherever the closed form holds there.

    `T` is where the noise ends, `t_min` where sampling ends unless told otherwise. To add a process, write a frozen
    dataclass with these two attributes and the formulas `_alpha`, `_sigma`, `_drift_rate`, `_diffusion`, `_time_at`,
    each taking a float or a float64 tensor (`solvers/elementary.py` has the functions for both), and `_half_log_snr`
    and `_transition` where their general forms lose digits.

    Song et al. 2021 (SDEs), Kingma et al. 2021 (log-SNR), Karras et al. 2022 (nu).
    """

    T: float
    t_min: float

    def alpha(self, t: Times) -> Times:
        """The coefficient of x0 in X_t (not its square); alpha(0) = 1."""
        return self._at(self._alpha, t)

    def sigma(self, t: Times) -> Times:
        """The standard deviation of X_t given X_0; sigma(0) = 0."""
        return self._at(self._sigma, t)

    def half_log_snr(self, t: Times) -> Times:
        """lambda = log(alpha / sigma), decreasing in t; +inf at 0."""
        return self._at(self._half_log_snr, t)

    def nu(self, t: Times) -> Times:
        """The noise level sigma / alpha = exp(-lambda) (EDM's sigma)."""
        return self._at(lambda u: self._sigma(u) / self._alpha(u), t)

    def drift_rate(self, t: Times) -> Times:
        """a = d log alpha / dt, in 1 / unit of t."""
        return self._at(self._drift_rate, t)

    def diffusion(self, t: Times) -> Times:
        """g >= 0, with g^2 = d sigma^2 / dt - 2 a sigma^2."""
        return self._at(self._diffusion, t)

    def time_at(self, half_log_snr: Times) -> Times:
        """The time of a given lambda: the inverse of `half_log_snr`, 0 at +inf. ValueError if no time has it."""
        time: Times = self._apply(self._time_at, half_log_snr, "half_log_snr", self._check_half_log_snr)
        return time

    @property
    def prior_std(self) -> float:
        """Standard deviation of the law that sampling starts from at T."""
        return self.sigma(self.T)

    def transition(self, s: float, t: float) -> tuple[float, float]:
        """(r, v) of X_t | X_s ~ N(r X_s, v I) for floats s < t: r = alpha(t)/alpha(s), v = sigma(t)^2 - r^2 sigma(s)^2.

        v is formed without that difference, so it keeps its digits as s -> t. ValueError unless 0 <= s < t.
        """
        s, t = float(s), float(t)
        self._check_time(s, t)
        if not s < t:
            raise ValueError(f"`transition` goes forward in time, but s = {s!r} is not below t = {t!r}")
        return self._transition(s, t)

    def perturb(self, t: float | Tensor, x0: Tensor, z: Tensor) -> Tensor:
        """alpha(t) x0 + sigma(t) z, in x0's dtype: a draw of X_t given x0 when z is standard normal.

        x0, z: (batch, *shape). t: a number, or a tensor of shape () or (batch,), one time per sample. Half-precision
        states are combined in float32. ValueError for other shapes.
        """
        if z.shape != x0.shape:
            raise ValueError(f"`z` has shape {tuple(z.shape)} but `x0` has {tuple(x0.shape)}; draw z like x0")
        if not x0.is_floating_point():
            raise TypeError(f"`x0` has dtype {x0.dtype}; convert it to a floating dtype first")
        work = torch.float32 if x0.dtype in (torch.float16, torch.bfloat16) else x0.dtype
        alpha: float | Tensor
        sigma: float | Tensor
        if isinstance(t, Tensor):
            if t.ndim > 1 or (t.ndim == 1 and t.shape != x0.shape[:1]):
                raise ValueError(
                    f"`t` has shape {tuple(t.shape)} but `x0` has {tuple(x0.shape)}; pass one time, or one per sample"
                )
            u = t.to(torch.float64).reshape(t.shape + (1,) * (x0.ndim - 1) if t.ndim else ())
            alpha, sigma = (c.to(x0.device, work) for c in (self.alpha(u), self.sigma(u)))
        else:
            alpha, sigma = self.alpha(t), self.sigma(t)
        return (alpha * x0.to(work) + sigma * z.to(work)).to(x0.dtype)

    # The formulas: a float or a float64 tensor in, the same out.

    @abstractmethod
    def _alpha(self, t: Any) -> Any: ...

    @abstractmethod
    def _sigma(self, t: Any) -> Any: ...

    @abstractmethod
    def _drift_rate(self, t: Any) -> Any: ...

    @abstractmethod
    def _diffusion(self, t: Any) -> Any: ...

    @abstractmethod
    def _time_at(self, half_log_snr: Any) -> Any: ...

    def _half_log_snr(self, t: Any) -> Any:
        return log(self._alpha(t)) - log(self._sigma(t))

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        """v = sigma_t^2 (1 - exp(2 (lambda_t - lambda_s))): relative error eps |lambda| / (lambda_s - lambda_t)."""
        r = self._alpha(t) / self._alpha(s)
        return r, -(self._sigma(t) ** 2) * expm1(2 * (self._half_log_snr(t) - self._half_log_snr(s)))

    # Checks and conversions, the same for all.

    def _check_time(self, low: float, high: float) -> None:
        if not low >= 0:
            raise ValueError(f"`t` = {low!r} is not a time: they run from 0 (data) to T = {self.T:g} (noise)")
        if not high < math.inf:
            raise ValueError(f"`t` = {high} is not finite; {type(self).__name__} has T = {self.T:g}")

    def _check_half_log_snr(self, low: float, high: float) -> None:
        if not low > -math.inf:
            raise ValueError(f"`half_log_snr` = {low} has no time; pass a finite number, or inf for t = 0")

    def _at(self, formula: Callable[[Any], Any], t: Times) -> Times:
        result: Times = self._apply(formula, t, "t", self._check_time)
        return result

    def _apply(
        self, formula: Callable[[Any], Any], value: Any, name: str, check: Callable[[float, float], None]
    ) -> Any:
        if isinstance(value, Tensor):
            if value.is_complex() or value.dtype == torch.bool:
                raise TypeError(f"`{name}` has dtype {value.dtype}; pass real numbers")
            if value.numel():
                # One read-back for both ends; torch.aminmax hands NaN through to the check.
                low, high = torch.stack(torch.aminmax(value.detach())).tolist()
                check(low, high)
            result = formula(value.to(torch.float64))
            return result.to(value.dtype) if value.is_floating_point() else result
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "fiu":
                raise TypeError(f"`{name}` has dtype {value.dtype}; pass real numbers")
            return self._apply(formula, torch.from_numpy(value.astype(np.float64)), name, check).numpy()
        x = _real(name, value, "pass a number, a tensor or a numpy array")
        check(x, x)
        try:
            return formula(x)
        except (OverflowError, ZeroDivisionError) as error:
            raise OverflowError(f"{self!r}: at `{name}` = {x!r} the result leaves the float64 range") from error

    def _store_positive(self, *names: str) -> None:
        """Check that these parameters of a frozen dataclass are positive finite numbers, and store them as floats."""
        for name in names:
            value = _real(f"{type(self).__name__}.{name}", getattr(self, name), "pass a positive number")
            if not 0 < value < math.inf:
                raise ValueError(f"{type(self).__name__}: `{name}` = {value} must be positive and finite")
            object.__setattr__(self, name, value)

    def _check_end(self) -> None:
        if not self.t_min < self.T:
            raise ValueError(
                f"{type(self).__name__}: `T` = {self.T:g} must exceed t_min = {self.t_min:g}, where sampling ends"
            )


def _real(name: str, value: Any, remedy: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` is a {type(value).__name__}; {remedy}")
    return float(value)

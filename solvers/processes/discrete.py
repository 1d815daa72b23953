"""The discrete chain of DDPM as a process in continuous time: DiscreteVP."""

import math
import numbers
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.solvers.processes.variance_preserving import BetaClock


@dataclass(frozen=True, repr=False)
class DiscreteVP(BetaClock):
    """The chain x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z, k = 1..N, with log alpha linear between its steps.

    alpha(k)^2 = prod_{i<=k} (1 - beta_i), sigma^2 = 1 - alpha^2; a = log(1 - beta_k)/2 on (k-1, k], g^2 = -2a. t in
    [0, N] (a diffusers timestep is k - 1), sampling to 1; prior N(0, I). `betas`: a sequence, array or tensor of
    numbers in (0, 1), kept as a tuple of floats. ValueError for other numbers, and for times beyond T = N, where no
    beta is known.
    Ho et al. 2020; the interpolation of Lu et al. 2022, appendix D.4.
    """

    betas: Sequence[float] | NDArray[Any] | Tensor
    T: float = field(init=False)
    t_min: float = field(default=1.0, init=False)
    _rates: tuple[float, ...] = field(init=False, compare=False)  # of the clock B, on each piece
    _ticks: tuple[float, ...] = field(init=False, compare=False)  # B at 0, 1, ..., N
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, compare=False)  # both, where they were used

    def __post_init__(self) -> None:
        betas = _as_tuple(self.betas)
        rates = tuple(-math.log1p(-beta) for beta in betas)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "T", float(len(betas)))
        object.__setattr__(self, "_rates", rates)
        object.__setattr__(self, "_ticks", tuple(_running_sums(rates)))
        object.__setattr__(self, "_tables", {})
        if len(betas) < 2:
            raise ValueError(
                f"DiscreteVP: `betas` has length {len(betas)}; sampling from T = N to t_min = 1 needs N >= 2"
            )

    def __repr__(self) -> str:
        low, high = min(self._rates), max(self._rates)
        return f"DiscreteVP({len(self._rates)} steps, beta {-math.expm1(-low):.4g} to {-math.expm1(-high):.4g})"

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables, which follow from the betas on whatever device a copy is used."""
        return {**self.__dict__, "_tables": {}}

    def _piece(self, t: Any) -> tuple[Any, Any, Any]:
        """(k - 1, B(k - 1), rate) of the piece (k - 1, k] that holds t; the first piece holds 0."""
        if isinstance(t, Tensor):
            k = (t.detach().ceil().long() - 1).clamp(min=0)
            rates, ticks = self._on(t.device)
            return k, ticks.take(k), rates.take(k)  # not ticks[k], which reads a k of shape ()
        j = max(math.ceil(t) - 1, 0)
        return j, self._ticks[j], self._rates[j]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rates and the ticks on that device, copied there once."""
        if device not in self._tables:
            with torch.inference_mode(False):  # whose tensors torch.compile refuses
                rates, ticks = (torch.tensor(v, dtype=torch.float64, device=device) for v in (self._rates, self._ticks))
            self._tables[device] = rates, ticks
        return self._tables[device]

    def _clock(self, t: Any) -> Any:
        start, tick, rate = self._piece(t)
        return tick + rate * (t - start)

    def _beta(self, t: Any) -> Any:
        return self._piece(t)[2] + 0.0 * t

    def _time_on_clock(self, B: Any) -> Any:
        if isinstance(B, Tensor):
            rates, ticks = self._on(B.device)
            k = (torch.searchsorted(ticks, B.detach().contiguous()) - 1).clamp(0, len(self._rates) - 1)
            t = k + (B - ticks.take(k)) / rates.take(k)
            return torch.where(t > self.T, self.T + (t - t.detach()), t)
        j = min(max(bisect_left(self._ticks, B) - 1, 0), len(self._rates) - 1)
        return min(j + (B - self._ticks[j]) / self._rates[j], self.T)

    def _elapsed(self, s: float, t: float) -> float:
        i: int = self._piece(s)[0]
        j: int = self._piece(t)[0]
        if i == j:
            return self._rates[i] * (t - s)
        return math.fsum((self._rates[i] * (i + 1 - s), *self._rates[i + 1 : j], self._rates[j] * (t - j)))

    def _check_time(self, low: float, high: float) -> None:
        super()._check_time(low, high)
        if high > self.T:
            raise ValueError(
                f"DiscreteVP: `t` = {high!r} is beyond T = {self.T:g}, the last step that has a beta; "
                "a solver that raises times (Heun's churn) must not do so at T"
            )

    def _check_half_log_snr(self, low: float, high: float) -> None:
        super()._check_half_log_snr(low, high)
        last = self._half_log_snr(self.T)
        # time_at(half_log_snr(T)) is T, so rounding on the way through another dtype is let through as T.
        if low < last - 1e-6 * max(1.0, abs(last)):
            raise ValueError(f"DiscreteVP: `half_log_snr` = {low!r} is below {last!r}, its value at T = {self.T:g}")


def _as_tuple(betas: Any) -> tuple[float, ...]:
    if isinstance(betas, Tensor):
        betas = betas.detach().cpu().double().numpy()
    if isinstance(betas, np.ndarray) and betas.ndim != 1:
        raise ValueError(f"DiscreteVP: `betas` has shape {betas.shape}; pass one number per step")
    if not isinstance(betas, Iterable):
        raise TypeError(f"DiscreteVP: `betas` is a {type(betas).__name__}; pass one number per step")
    values = tuple(betas)
    for i, beta in enumerate(values):
        if not isinstance(beta, numbers.Real | Tensor) or not 0 < float(beta) < 1:
            raise ValueError(f"DiscreteVP: betas[{i}] = {beta} is not in (0, 1), the variance that a step adds")
    return tuple(float(beta) for beta in values)


def _running_sums(values: tuple[float, ...]) -> Iterable[float]:
    """0 and the partial sums, to half an ulp or so each (Neumaier 1974): a plain sum of 1000 loses three digits."""
    total, lost = 0.0, 0.0
    yield 0.0
    for value in values:
        new = total + value
        lost += (total - new) + value if total >= value else (value - new) + total
        total = new
        yield total + lost

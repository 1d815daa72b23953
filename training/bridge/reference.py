"""The reference process of a bridge in N steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.solvers.processes import OU, Brownian, Process
from halfbridge.solvers.processes.described import describe
from halfbridge.solvers.reference.covariance import float64
from halfbridge.solvers.reference.gaussian_ipf import chain_times, reference_kernels
from halfbridge.solvers.reference.pinned import Pinned
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.gammas import check_gammas

__all__ = ["ReferenceChain"]

Times = int | Sequence[float] | NDArray[Any] | Tensor


@dataclass(frozen=True)
class ReferenceChain:
    """x_{k+1} = gains[k] x_k + sqrt(2 gammas[k]) z, k = 0, ..., N - 1: a linear process from 0 to T in N steps.

    process     any linear process (hb.Brownian, hb.OU, hb.VP, ...); its T is the end of the bridge
    times       a number N of equal steps, or the N + 1 times, increasing from 0 to T; kept as a tuple of floats. times[k] is
                the label of the state x_k, for the networks of both directions
    transitions "exact" (default): the transition N(r x, v I) of the process itself, so gains[k] = r and 2 gammas[k] = v. The law
                of (x_0, x_N) is that of the process for any N, and with it the Schrödinger bridge: the chain's coupling is that
                of `hb.reference.GaussianBridge` and `static_bridge`, and no step is too long to be stable.
                "euler": gains[k] = 1 + a Delta, 2 gammas[k] = g^2 Delta, with a and g in the middle of the step Delta. With
                constant a and g this is Euler-Maruyama, the chain of De Bortoli et al. 2021 (see `dsb`).
    gains, gammas   tuples of N floats, made from these three

    The papers write gamma_{k+1} for the step from x_k to x_{k+1}; it is gammas[k] here. In their letters a kernel is
    N(x + gamma_{k+1} f_k(x), 2 gamma_{k+1} I), so for dX = a X dt + g dW, 2 gamma = g^2 Delta and f = 2 a x/g^2
    (dX = -X/2 dt + dW has f = -x and gamma = Delta/2); `drift` is that f.

    Raises ValueError for times that do not run from 0 to T, N = 0, an unknown `transitions`, a step without noise, and an Euler
    step so long that it turns x round; TypeError for a `process` that is none.
    """

    process: Process
    times: tuple[float, ...]
    transitions: str = "exact"
    gains: tuple[float, ...] = field(init=False, repr=False, compare=False)
    gammas: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __init__(self, process: Process, times: Times, transitions: str = "exact") -> None:
        pinned = Pinned(process)
        at = chain_times(pinned, times)
        gains, variances = _kernels(pinned, at, transitions)
        for k, (gain, variance) in enumerate(zip(gains, variances, strict=True)):
            step = f"step {k} of the chain, from {at[k]:.6g} to {at[k + 1]:.6g}"
            if not (variance > 0 and math.isfinite(variance)):
                raise ValueError(f"{step}, has the variance {variance:g} under {process!r}; pass other `times`")
            if not gain > 0:
                raise ValueError(
                    f"{step}, is too long: its Euler gain 1 + a Delta is {gain:.6g} under {process!r}; pass more steps, or "
                    "transitions='exact'"
                )
        values = {
            "process": process, "times": tuple(at.tolist()), "transitions": transitions, "gains": tuple(gains),
            "gammas": tuple(v / 2 for v in variances),
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def spaced(cls, process: Process, gammas: Any, transitions: str = "exact") -> ReferenceChain:
        """The chain of `process` whose step sizes are in the ratios of `gammas` (N,); the process says what they sum to.

        The times are solved for, so that the variances of the kernels are in those ratios to 1e-9. ValueError where a step
        size is not positive, or where the noise of the process cannot be shared out so (Euler steps over jumps of a and g).
        """
        pinned, wanted = Pinned(process), check_gammas(gammas)
        chain = cls(process, _shared_out(pinned, wanted.tolist(), transitions), transitions)
        ratio = float64("gammas", chain.gammas)[0] / wanted
        if float(ratio.max()) > (1 + 1e-9) * float(ratio.min()):
            raise ValueError(
                f"`gammas`: no times give {process!r} step sizes in these ratios with transitions = {transitions!r} (its a and g "
                f"jump); the nearest differ by a factor of {float(ratio.max() / ratio.min()):.6g}; pass transitions='exact'"
            )
        return chain

    @classmethod
    def dsb(cls, gammas: Any, rate: float = 0.0) -> ReferenceChain:
        """De Bortoli et al. 2021: x_{k+1} = x_k - rate gamma_{k+1} x_k + sqrt(2 gamma_{k+1}) z with exactly these step sizes.

        Its process is dX = -rate X dt + sqrt(2) dW on [0, T], T the sum of the gammas (hb.Brownian or hb.OU with g = sqrt 2), in
        Euler-Maruyama steps: rate 0 is the paper's Brownian reference, and with rate 1 it tends to N(0, I).
        """
        sizes = check_gammas(gammas).numpy()
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < math.inf:
            raise ValueError(f"`rate` = {rate!r} must be a number, at least 0: the drift is f(x) = -rate x")
        times = np.concatenate([[0.0], np.cumsum(sizes)])
        end = float(times[-1])
        process = OU(float(rate), math.sqrt(2.0), end) if rate else Brownian(math.sqrt(2.0), end)
        return cls(process, times, "euler")

    @property
    def steps(self) -> int:
        """N."""
        return len(self.gammas)

    def gamma(self, direction: Direction, k: int) -> float:
        """The step size of the step from x_k in that direction: gamma_{k+1} forward, gamma_k backward."""
        return self.gammas[direction.interval(k)]

    def drift(self, k: int, x: Tensor) -> Tensor:
        """f_k(x) = (E[x_{k+1} | x_k = x] - x)/gamma_{k+1}."""
        return (self.gains[k] - 1.0) / self.gammas[k] * x

    @property
    def config(self) -> dict[str, Any]:
        """JSON values: the process, the times and the transitions. ValueError for a process that cannot be written down."""
        return {"process": describe(self.process), "times": list(self.times), "transitions": self.transitions}


def _kernels(pinned: Pinned, times: NDArray[np.float64], transitions: str) -> tuple[list[float], list[float]]:
    if transitions not in ("exact", "euler"):
        raise ValueError(
            f"`transitions` = {transitions!r} is not 'exact' (the law of the process) or 'euler' (the chain of DSB)"
        )
    gains, variances = reference_kernels(pinned, times, "exact" if transitions == "exact" else "fixed")
    return gains, variances


def _shared_out(pinned: Pinned, gammas: list[float], transitions: str) -> list[float]:
    """Times 0 = t_0 < ... < t_N = T at which the kernels' variances are in the ratios of `gammas`.

    For a trial size of the whole, each step is solved for in turn; what is left over of the chain, or of the way to T, is
    zero for the right size.
    """
    from scipy.optimize import brentq

    total, T = math.fsum(gammas), pinned.T
    shares = [gamma / total for gamma in gammas]

    def variance(u: float, t: float) -> float:
        return _kernels(pinned, np.array([u, t]), transitions)[1][0] if t > u else 0.0

    def gap(t: float, u: float, wanted: float) -> float:
        return variance(u, t) - wanted

    def placed(size: float) -> list[float]:
        """The times that still fit before T."""
        times = [0.0]
        for share in shares:
            wanted = size * share
            if not variance(times[-1], T) >= wanted:
                break
            times.append(float(brentq(gap, times[-1], T, args=(times[-1], wanted), xtol=1e-16 * T, rtol=1e-15)))
        return times

    def left_over(log_size: float) -> float:
        times = placed(math.exp(log_size))
        if len(times) > len(shares):
            return (times[-1] - T) / T
        return math.fsum(shares[len(times) - 1 :]) - variance(times[-1], T) / math.exp(log_size)

    low = high = math.log(variance(0.0, T))
    while left_over(low) > 0:
        low -= 1.0
    while left_over(high) < 0:
        high += 1.0
    times = placed(math.exp(float(brentq(left_over, low, high, xtol=1e-15, rtol=1e-15))))[: len(shares)]
    if len(times) < len(shares) or not times[-1] < T:
        raise ValueError(
            f"`gammas`: the last of {len(gammas)} steps are too small a part of the noise of {pinned.process!r}; the smallest "
            f"is {min(shares):.3g} of the sum"
        )
    return [*times, T]

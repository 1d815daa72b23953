"""Where on [t_min, T] training times fall, and what a loss at those times estimates.

With u uniform (stratified over the batch by `training.noise.StepNoise`), t = F^{-1}(u) has the density p = F'. A mean over u
of loss(t) is int p(t) loss(t) dt: the density is a part of the loss. A mean of loss(t)/p(t) is int loss(t) dt whatever p: that
is importance sampling, and p is chosen for a small variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from halfbridge.solvers.processes import DiscreteVP, Process
from halfbridge.training.losses.choice import check_choice

__all__ = [
    "TIMES",
    "Drawn",
    "Importance",
    "LogNormal",
    "TimeLaw",
    "Times",
    "check_levels_exist",
    "correction",
    "draw_times",
    "sample_times",
    "time_span",
]


class Drawn(NamedTuple):
    """Training times, (n,) float64."""

    t: torch.Tensor
    inverse_density: torch.Tensor | None
    """1/p(t) in units of t (for DiscreteVP over the probability of the step), or None where p is a part of the loss."""


class TimeLaw(ABC):
    """A law of times with parameters: a frozen dataclass called (process, u), u (n,) uniform in (0, 1), float64."""

    @abstractmethod
    def __call__(self, process: Process, u: torch.Tensor) -> Drawn: ...


@dataclass(frozen=True)
class LogNormal(TimeLaw):
    """log nu ~ N(mean, std^2), nu = sigma/alpha, at t = the time of that level: a part of the loss. Not cut at t_min or T,
    so the objectives refuse it on a process that has no times beyond them. Karras et al. 2022, table 1 (P_mean, P_std)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean) or not 0.0 < self.std < math.inf:
            raise ValueError(f"LogNormal: mean = {self.mean!r} must be finite and std = {self.std!r} positive")

    def __call__(self, process: Process, u: torch.Tensor) -> Drawn:
        return Drawn(process.time_at(-(self.mean + self.std * torch.special.ndtri(u))), None)


@dataclass(frozen=True)
class Importance:
    """Times F^{-1}(u) with 1/p, for any density p on [t_min, T] given by the inverse of its cdf and itself (per unit of t).

    A loss at these times estimates the same integral as at uniform times: see `correction`.
    """

    inverse_cdf: Callable[[torch.Tensor], torch.Tensor]
    density: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t = self.inverse_cdf(u)
        return t, 1.0 / self.density(t)


def uniform(process: Process, u: torch.Tensor) -> Drawn:
    if isinstance(process, DiscreteVP):
        t = 1.0 + torch.floor(u * process.T).clamp(max=process.T - 1.0)
    else:
        t = process.t_min + u * (process.T - process.t_min)
    return Drawn(t, torch.full_like(t, time_span(process)))


def half_log_snr(process: Process, u: torch.Tensor) -> Drawn:
    least, most = process.half_log_snr(process.T), process.half_log_snr(process.t_min)
    return Drawn(process.time_at(least + u * (most - least)).clamp(process.t_min, process.T), None)


def likelihood(process: Process, u: torch.Tensor) -> Drawn:
    """p proportional to g^2/sigma^2 = -2 dlambda/dt, whose integral is known: uniform in lambda. On a discrete process the
    same law of whole steps. Song et al. 2021b, section 5."""
    if isinstance(process, DiscreteVP):
        steps = torch.arange(1.0, process.T + 1.0, dtype=torch.float64, device=u.device)
        rate = (process._diffusion(steps) / process._sigma(steps)) ** 2
        p = rate / rate.sum()
        k = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
        return Drawn(steps[k], 1.0 / p[k])
    t = half_log_snr(process, u).t
    total = 2.0 * (process.half_log_snr(process.t_min) - process.half_log_snr(process.T))
    return Drawn(t, total * (process._sigma(t) / process._diffusion(t)) ** 2)


Times = str | TimeLaw | Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
"""A name of TIMES, a `TimeLaw`, or a function of u that returns t, or (t, 1/p(t)) to sample by importance."""

TIMES: dict[str, Callable[[Process, torch.Tensor], Drawn]] = {
    "uniform": uniform,
    "half_log_snr": half_log_snr,
    "likelihood": likelihood,
    "log_normal": LogNormal(),
}
"""What t is and what the loss then estimates, E over u of loss(t) times `correction`:

"uniform"       uniform in t (the integers 1..T for DiscreteVP): the mean over [t_min, T], or the integral
"likelihood"    p proportional to g^2/sigma^2, corrected: the same mean or integral, for the weighting "likelihood" with less
                variance (Song et al. 2021b)
"half_log_snr"  uniform in lambda, a part of the loss: the mean over lambda
"log_normal"    `LogNormal()`, a part of the loss
"""


def draw_times(process: Process, u: torch.Tensor, times: Times = "uniform") -> Drawn:
    """Training times from u (n,), uniform in (0, 1), float64, with 1/p(t) where the law is one to correct for."""
    if isinstance(times, TimeLaw):
        return times(process, u)
    if callable(times):
        drawn = times(u)
        t, inverse = drawn if isinstance(drawn, tuple) else (drawn, None)
        if t.shape != u.shape or (inverse is not None and inverse.shape != u.shape):
            shapes = ", ".join(str(tuple(v.shape)) for v in (t, inverse) if v is not None)
            raise ValueError(
                f"times(u) returned shapes {shapes} for u of shape {tuple(u.shape)}; return one of each a row"
            )
        return Drawn(t, inverse)
    check_choice("times", times, TIMES, "a function of u in (0, 1)")
    return TIMES[times](process, u)


def check_levels_exist(process: Process, times: Times) -> None:
    """ValueError for a named law or a `TimeLaw` that draws noise levels which the process has at no time: some processes end
    at T, and a DiscreteVP begins at its step 1, the first that a network is told of. Asked at u = 1e-12 and 1 - 1e-12, so
    that an objective refuses when it is made what would end a run at a random step."""
    if not isinstance(times, (str, TimeLaw)):
        return
    remedy = "pass times = 'half_log_snr', or a process that has them, such as hb.VP()"
    try:
        t = draw_times(process, torch.tensor([1e-12, 1.0 - 1e-12], dtype=torch.float64, device="cpu"), times).t
    except ValueError as error:
        raise ValueError(
            f"times = {times!r} draws noise levels that are not in {process!r} ({error}); {remedy}"
        ) from error
    if isinstance(process, DiscreteVP) and not (t >= process.t_min).all():
        raise ValueError(
            f"times = {times!r} draws noise levels that are not in {process!r} (t = {t.min().item():.3g}, below 1); {remedy}"
        )


def sample_times(process: Process, u: torch.Tensor, times: Times = "uniform") -> torch.Tensor:
    """The times of `draw_times` alone, float64: for a loss of one's own, or where p is a part of it."""
    return draw_times(process, u, times).t


def time_span(process: Process) -> float:
    """What turns a mean over times into an integral: T - t_min, or the number of steps of DiscreteVP, whose integral is the
    sum over its steps."""
    return process.T if isinstance(process, DiscreteVP) else process.T - process.t_min


def correction(
    process: Process, inverse_density: torch.Tensor | None, *, integral: bool = False
) -> torch.Tensor | float:
    """What a loss at drawn times is multiplied by: 1/(p span) for the mean over [t_min, T], or 1/p for the integral dt.

    Likelihood bounds are integrals; a mean over t in their place is smaller by the factor T - t_min. Where the density is a
    part of the loss (None) the factor is 1, and an integral has no meaning: ValueError.
    """
    if inverse_density is not None:
        return inverse_density if integral else inverse_density / time_span(process)
    if integral:
        raise ValueError(
            "integral = True, but the density of these times is a part of the loss; pass times = 'uniform' or 'likelihood', or "
            "a function that returns (t, 1/p)"
        )
    return 1.0

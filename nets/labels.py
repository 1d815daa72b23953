"""Labels: what a network is told of the time, for networks trained with their own count of it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from halfbridge.kernels.arguments import accumulation
from halfbridge.solvers.processes import DiscreteVP, Process

__all__ = ["Labels", "default_labels", "network_labels", "scaled", "steps", "time_of_label"]

Labels = Callable[[Any], Any]
"""From a time (a float, or a tensor of them) to the label that the network was trained with."""


def default_labels(process: Process) -> Labels:
    """What a network is told at time t: the step minus 1 for DiscreteVP (diffusers counts from 0), else t itself."""
    if isinstance(process, DiscreteVP):
        return lambda t: t - 1
    return lambda t: t


def time_of_label(process: Process, label: torch.Tensor) -> torch.Tensor:
    """The time at which `default_labels(process)` gives `label`, in float64."""
    t = label.double()
    return t + 1 if isinstance(process, DiscreteVP) else t


def network_labels(labels: Labels, t: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """labels(t) for every sample of x: shape (batch,), on x's device, in x's dtype (float32 for half states), or in the
    dtype that `labels` has as an attribute (int64 for `steps`).

    t: one time, or a (batch,) tensor of times. The label is computed in t's own precision and rounded once.
    """
    dtype = getattr(labels, "dtype", accumulation(x.dtype))
    label = torch.as_tensor(labels(t), dtype=dtype, device=x.device)
    if label.ndim > 1 or label.numel() not in (1, x.shape[0]):
        raise ValueError(
            f"labels(t) has shape {tuple(label.shape)} for a batch of {x.shape[0]}; return one number for each time"
        )
    return label.reshape(-1).expand(x.shape[0]).contiguous()


@dataclass(frozen=True)
class Scaled:
    """The label factor t."""

    factor: float

    def __call__(self, t: Any) -> Any:
        return self.factor * t


@dataclass(frozen=True)
class Steps:
    """The nearest of the steps t_k = T k / n, as the label k - 1."""

    process: Process
    n: int

    dtype: ClassVar[torch.dtype] = torch.int64

    def __post_init__(self) -> None:
        if not isinstance(self.process, Process):
            raise TypeError(f"process is a {type(self.process).__name__}; pass the process that is sampled: hb.VP()")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ValueError(
                f"n = {self.n!r} must be an integer, at least 1: the number of steps the network was trained on"
            )

    def __call__(self, t: Any) -> torch.Tensor:
        u = torch.as_tensor(t, dtype=torch.float64)
        label = (self.n * u / self.process.T - 1.0).round()
        if u.numel():
            low, high, last = torch.stack([u.min(), u.max(), label.max()]).tolist()
            if not low >= 0.0 or not last <= self.n - 1:  # NaN too
                raise ValueError(
                    f"t = {low if not low >= 0.0 else high!r} is not a time of the network's {self.n} steps, which end at "
                    f"T = {self.process.T:g}; a solver that raises times (Heun's churn) must stay below it: lower s_max"
                )
        return label.clamp(min=0.0).long()


def scaled(factor: float) -> Labels:
    """Labels factor t: 999.0 for networks of score_sde under VP (Song et al. 2021), 1000.0 where time runs to 1 and the
    network counts a thousand steps but takes fractions.

    The product is formed in the time's own precision (float64 when sampling) and rounded once. ValueError for a factor
    that is 0 or not finite.
    """
    return Scaled(_check_factor(factor))


def steps(process: Process, n: int) -> Labels:
    """Labels of a network that was trained on n discrete timesteps 0 .. n - 1 and is used under a process in continuous time.

    The chain's step k = 1 .. n is the time t_k = T k / n, and its label is k - 1 (DDPM's chain read as a discretisation of
    the SDE, Song et al. 2021, appendix B; the discrete-time networks of Lu et al. 2022, DPM-Solver, section 3.4). A time
    between steps has the label of the nearest one, round(n t / T - 1), and before t_1 that is 0; rounded only there (halves
    to even), and given as int64. For hb.VP(0.1, 20) and n = 1000, t_k is where DDPM's linear betas put their step k, to
    O(1 / n).

    The network then is a step function of time: solvers of high order see its jumps; put their grid on the t_k, or use
    fractional labels, `scaled`, where the network takes them.

    The returned function takes a float or a tensor of times. It raises ValueError for a negative time and for one that is
    past T by more than half a step.
    """
    return Steps(process, n)


def _check_factor(factor: Any) -> float:
    if isinstance(factor, bool) or not isinstance(factor, numbers.Real):
        raise TypeError(f"factor is a {type(factor).__name__}; pass a number, e.g. 999.0")
    value = float(factor)
    if not math.isfinite(value) or value == 0:
        raise ValueError(f"factor = {value} must be finite and not 0, or all times have one label; pass e.g. 999.0")
    return value

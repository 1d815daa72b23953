"""Noise-conditional score networks: denoising score matching over a finite ladder of noise levels, x = x0 + sigma_i z."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from halfbridge.nets.adapter import Labels, Network
from halfbridge.solvers.processes import Process
from halfbridge.training.losses.denoising import denoising_loss

__all__ = ["LevelLabels", "check_levels", "geometric_levels", "level_times", "ncsn_loss"]


def geometric_levels(sigma_max: float, sigma_min: float, n: int) -> torch.Tensor:
    """sigma_i = sigma_max (sigma_min/sigma_max)^((i-1)/(n-1)), i = 1..n: decreasing, (n,), float64, exact at both ends.

    Song and Ermon 2019 (there sigma_1 is the largest). ValueError unless 0 < sigma_min < sigma_max and n >= 2.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"n = {n!r} must be an int of at least 2, the number of levels")
    if not 0.0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_max = {sigma_max!r} must be finite and above sigma_min = {sigma_min!r}, which is positive"
        )
    place = torch.arange(n, dtype=torch.float64, device="cpu") / (n - 1)
    levels = torch.exp((1.0 - place) * math.log(sigma_max) + place * math.log(sigma_min))
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels


def check_levels(levels: torch.Tensor | Sequence[float]) -> torch.Tensor:
    """The levels as float64, strictly decreasing and positive. ValueError for others."""
    values = torch.as_tensor(levels, dtype=torch.float64)
    if values.ndim != 1 or len(values) < 1 or not (values.isfinite() & (values > 0)).all():
        raise ValueError(f"levels = {levels!r} must be positive finite numbers, one for each level")
    if not (values[1:] < values[:-1]).all():
        j = int((values[1:] >= values[:-1]).nonzero()[0])
        raise ValueError(
            f"levels must decrease, but levels[{j}] = {values[j].item():.6g} and levels[{j + 1}] = "
            f"{values[j + 1].item():.6g}; pass them from the largest noise down, as geometric_levels gives them"
        )
    return values


def level_times(process: Process, levels: torch.Tensor | Sequence[float]) -> torch.Tensor:
    """The times at which a process that keeps the data (alpha = 1: EDM, VE, Brownian) has these levels, (n,), float64: the
    levels themselves for EDM. ValueError for other processes and for levels that it does not reach on [0, T]."""
    values = check_levels(levels)
    if process.alpha(process.T) != 1.0:
        raise ValueError(f"process = {process!r} scales the data; pass one with alpha = 1, such as hb.EDM() or hb.VE()")
    times: torch.Tensor = process.time_at(-values.log())
    last = process.sigma(process.T)
    if values[0].item() > last * (1.0 + 1e-12):
        raise ValueError(
            f"levels start at {values[0].item():.6g}, above {last:.6g}, the noise of {process!r} at its end T"
        )
    return times.clamp(max=process.T)


@dataclass(frozen=True)
class LevelLabels:
    """Labels for a network that is told the index of the level, 0 for the largest: the nearest level in log sigma.

    A function of the time, as `nets.as_field` takes it. ValueError for a noise beyond the ladder by more than half of its
    first or last step (in log sigma; one level has no step), of which the network was told nothing.
    """

    process: Process
    levels: tuple[float, ...]

    def __call__(self, t: float | torch.Tensor) -> float | torch.Tensor:
        time = t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64)
        ladder = torch.tensor(self.levels, dtype=torch.float64, device=time.device).log()
        level = self.process.sigma(time.double()).log()
        steps = (ladder[:-1] - ladder[1:]) / 2.0 if len(ladder) > 1 else torch.zeros_like(ladder)
        beyond = (level > ladder[0] + steps[0] + 1e-6) | (level < ladder[-1] - steps[-1] - 1e-6)
        if beyond.any():
            raise ValueError(
                f"t = {time[beyond][0].item():.6g} has the noise {level[beyond][0].exp().item():.6g}, which is near none of the "
                f"levels {self.levels[0]:.6g} .. {self.levels[-1]:.6g}; sample on a grid between these"
            )
        index = (level[..., None] - ladder).abs().argmin(dim=-1).double()
        return index if isinstance(t, torch.Tensor) else index.item()


def ncsn_loss(
    net: Network,
    process: Process,
    levels: torch.Tensor | Sequence[float],
    x0: torch.Tensor,
    i: torch.Tensor,
    z: torch.Tensor,
    *,
    predicts: str = "score",
    labels: Labels | None = None,
) -> torch.Tensor:
    """sigma_i^2 |s(x0 + sigma_i z) + z/sigma_i|^2/d at the levels i (batch,) in 1..L, (batch,): the mean over i is the loss of
    Song and Ermon 2019, eqs. 5 and 6, times 2/d (they have 1/2 and a sum over the d dimensions).

    process: EDM, VE or another with alpha = 1: the network is told labels(t) at the level's time t, sigma itself for EDM by
    default, `LevelLabels` for its index; what is trained is a field of this process at these times.
    """
    times = level_times(process, levels)
    if not ((i >= 1) & (i <= len(times)) & (i == i.round())).all():
        bad = i[~((i >= 1) & (i <= len(times)) & (i == i.round()))].flatten()[0].item()
        raise ValueError(f"i holds {bad:g}, but the levels are numbered 1 .. {len(times)}")
    t = times.to(i.device)[i.long() - 1]
    return denoising_loss(net, process, x0, t, z, predicts=predicts, labels=labels)

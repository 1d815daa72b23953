"""The objective of denoising score matching, and what the objectives that differentiate the score share with it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from halfbridge.nets.adapter import Labels, Network
from halfbridge.solvers.processes import Process
from halfbridge.training.losses.denoising import denoising_loss
from halfbridge.training.losses.times import Times, check_levels_exist, correction, draw_times
from halfbridge.training.losses.weighting import Weighting
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.base import OnProcess
from halfbridge.training.objectives.described import TIME_LAWS, WEIGHTS, describe_labels

__all__ = ["Denoising", "ScoreMatching"]


@dataclass(frozen=True)
class ScoreMatching(OnProcess, ABC):
    """The network's error at times drawn by one law, weighted by another.

    predicts   what the network gives: "noise", "score", "data" or "velocity"
    weighting  a name of `losses.WEIGHTINGS`, a `losses.Weight`, or a function of t
    times      a name of `losses.TIMES`, a `losses.TimeLaw`, or a function of u
    labels     as in `nets.as_field`
    integral   False: the mean over t in [t_min, T]. True: the integral dt, T - t_min as much. On a DiscreteVP: the mean over its
               steps, and their sum, N times as much
    """

    name: ClassVar[str]

    process: Process
    predicts: str = "noise"
    weighting: Weighting = "simple"
    times: Times = "uniform"
    labels: Labels | None = None
    integral: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weighting", WEIGHTS.build(self.weighting))
        object.__setattr__(self, "times", TIME_LAWS.build(self.times))
        check_levels_exist(self.process, self.times)
        if self.integral:
            half = torch.full((1,), 0.5, dtype=torch.float64, device="cpu")
            correction(self.process, draw_times(self.process, half, self.times).inverse_density, integral=True)

    @property
    def config(self) -> dict[str, Any]:
        """JSON values, without the process. ValueError where a choice is a function."""
        described = {
            "weighting": WEIGHTS.describe(self.weighting),
            "times": TIME_LAWS.describe(self.times),
            "labels": describe_labels(self.labels, self.process),
        }
        names = [f.name for f in dataclasses.fields(self) if f.name != "process"]
        return {"type": self.name, **{n: described.get(n, getattr(self, n)) for n in names}}

    @abstractmethod
    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor: ...


@dataclass(frozen=True)
class Denoising(ScoreMatching):
    """E over t of w(t) |noise error|^2/d: `losses.denoising_loss` at the times of `losses.draw_times`.

    predicts   what the network gives: "noise", "score", "data" or "velocity"
    weighting  a name of `losses.WEIGHTINGS`, a `losses.Weight`, or a function of t
    times      a name of `losses.TIMES`, a `losses.TimeLaw`, or a function of u
    labels     as in `nets.as_field`
    integral   False: the mean over t in [t_min, T]. True: the integral dt, T - t_min as much; with the weighting "likelihood"
               d/2 of it is the bound's KL in nats, up to a constant of the data (Song et al. 2021b). For times whose
               density is a part of the loss ("half_log_snr", "log_normal", functions that return t alone) only False.
               On a DiscreteVP the mean is over its steps and the "integral" their sum, N times as much, which is no bound:
               the objectives "ddpm_elbo" and "vdm_discrete" are
    Vincent 2011; Song et al. 2021. ValueError for unknown names, and for times at which the process has no noise level.
    """

    name: ClassVar[str] = "denoising"

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        t, inverse_density = draw_times(self.process, noise.uniform(), self.times)
        loss = denoising_loss(
            net,
            self.process,
            x0,
            t.to(x0.device),
            noise.normal(),
            predicts=self.predicts,
            weighting=self.weighting,
            labels=self.labels,
        )
        factor = correction(self.process, inverse_density, integral=self.integral)
        return loss * (factor.to(loss) if isinstance(factor, torch.Tensor) else factor)

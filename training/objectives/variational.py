"""Variational diffusion models as objectives, with a given process or a learned schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from halfbridge.nets.adapter import Labels, Network, as_field
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import DiscreteVP, Process
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.losses.ddpm import prior_kl
from halfbridge.training.losses.decoders import Discretised
from halfbridge.training.losses.denoising import check_predicts
from halfbridge.training.losses.schedule import LearnedSchedule
from halfbridge.training.losses.times import correction, draw_times
from halfbridge.training.losses.vdm import INTERIORS, learned_vdm_loss, reconstruction, vdm_discrete_loss, vdm_loss
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.chains import BOUND_TIMES
from halfbridge.training.objectives.described import DECODER, build_labels, check_process, describe_labels

__all__ = ["VDM", "VDMDiscrete"]


class Variational(torch.nn.Module):
    """What both share: (prior KL + reconstruction + diffusion loss)/d, nats a dimension, unbiased, a bound on -log p(x0)/d."""

    def __init__(
        self,
        process: Process | None,
        predicts: str,
        schedule: LearnedSchedule | Mapping[str, Any] | None,
        levels: Discretised | None,
        labels: Labels | None,
    ) -> None:
        super().__init__()
        if (process is None) == (schedule is None):
            raise ValueError(
                f"process = {process!r} and schedule = {schedule!r}: pass a process, or a LearnedSchedule to train one"
            )
        if process is not None:
            check_process(process)
        check_predicts(predicts)
        self.schedule = LearnedSchedule(**schedule) if isinstance(schedule, Mapping) else schedule
        self.given, self.predicts, self.labels = process, predicts, build_labels(labels, process)
        self.levels: Discretised | None = DECODER.build(levels)

    @property
    def process(self) -> Process:
        """The given process, or that of the schedule as it is now."""
        if self.schedule is not None:
            return self.schedule.process()
        assert self.given is not None
        return self.given

    @property
    def config(self) -> dict[str, Any]:
        return {
            "predicts": self.predicts,
            "schedule": None if self.schedule is None else self.schedule.config,
            "levels": DECODER.describe(self.levels),
            "labels": describe_labels(self.labels, self.given),
        }

    def to_label(self) -> Labels | None:
        """The labels given; without, lambda(t) for a learned schedule, and the default of `nets.as_field` else."""
        return self.process.half_log_snr if self.labels is None and self.schedule is not None else self.labels

    def bound(self, x0: torch.Tensor, diffusion: torch.Tensor) -> torch.Tensor:
        process = self.process
        ends = prior_kl(process, x0) + reconstruction(process, x0, self.levels)
        return (ends.to(diffusion) + diffusion) / math.prod(x0.shape[1:])

    def field(self, net: Any, **options: Any) -> Field:
        return as_field(net, self.process, self.predicts, **{"labels": self.to_label(), **options})


class VDM(Variational):
    """-VLB(x0)/d, nats a dimension, in infinitely many steps: `losses.vdm_loss` at one time of each sample over its density,
    `losses.prior_kl` and `losses.reconstruction`. Kingma et al. 2021.

    process    the process, in continuous time, or None with
    schedule   a `losses.LearnedSchedule`, or its config: trained with the network (pass `objective.parameters()` to the
               optimiser, save `objective.state_dict()`). Labels are then lambda(t) unless given
    levels     None: x0 has the density N(z_s/alpha, (sigma/alpha)^2 I) given z_s, s = t_min; `losses.Discretised(...)` for
               data on levels: the bound is then on their probability
    times      "uniform" or "likelihood" (uniform in lambda); the bound is the same. A learned schedule has "uniform"
    interior   "variance" or "bound": what trains the schedule between its ends, see `losses.learned_vdm_loss`
    ValueError for others.
    """

    def __init__(
        self,
        process: Process | None = None,
        *,
        predicts: str = "noise",
        schedule: LearnedSchedule | Mapping[str, Any] | None = None,
        levels: Discretised | None = None,
        times: str = "uniform",
        interior: str = "variance",
        labels: Labels | None = None,
    ) -> None:
        super().__init__(process, predicts, schedule, levels, labels)
        if isinstance(process, DiscreteVP):
            raise ValueError(
                f"process = {process!r} has steps, and a sum over them is not the integral that bounds -log p; pass the "
                f"objective 'vdm_discrete' with steps = {process.T - 1.0:g}, or 'ddpm_elbo'"
            )
        check_choice("times", times, BOUND_TIMES)
        if schedule is not None and times != "uniform":
            raise ValueError(
                f"times = {times!r}: a learned schedule finds its own law of levels; pass times = 'uniform'"
            )
        check_choice("interior", interior, INTERIORS)
        self.times, self.interior = times, interior

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "vdm", **super().config, "times": self.times, "interior": self.interior}

    def forward(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        process = self.process
        t, inverse = draw_times(process, noise.uniform(), self.times)
        t, z = t.to(x0.device), noise.normal()
        if self.schedule is None:
            loss = vdm_loss(net, process, x0, t, z, predicts=self.predicts, labels=self.labels)
        else:
            loss = learned_vdm_loss(
                net, self.schedule, x0, t, z, predicts=self.predicts, labels=self.labels, interior=self.interior
            )
        factor = torch.as_tensor(correction(process, inverse, integral=True)).to(loss)
        return self.bound(x0, factor * loss)


class VDMDiscrete(Variational):
    """-VLB(x0)/d, nats a dimension, in `steps` steps evenly spaced on [t_min, T]: `losses.vdm_discrete_loss` at one step of
    each sample times `steps`, and the rest of `VDM`. A learned schedule is trained on the bound throughout. Kingma et al.
    2021, section 4.

    process    the process, or None with a schedule. The gap to `VDM`'s bound falls as 1/steps, from a height that depends on how
               even lambda is in t. For Gaussian data of variance 1/4 and 1000 steps, nats a dimension: VP 0.44, Brownian 0.28,
               VE 48, EDM 815, so take `VDM` for these two. On a DiscreteVP, steps = N - 1 are its own, 2 .. N
    """

    def __init__(
        self,
        process: Process | None = None,
        *,
        steps: int = 1000,
        predicts: str = "noise",
        schedule: LearnedSchedule | Mapping[str, Any] | None = None,
        levels: Discretised | None = None,
        labels: Labels | None = None,
    ) -> None:
        super().__init__(process, predicts, schedule, levels, labels)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps = {steps!r} must be an int of at least 1")
        self.steps = steps

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "vdm_discrete", **super().config, "steps": self.steps}

    def forward(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        i = 1.0 + torch.floor(noise.uniform() * self.steps).clamp(max=self.steps - 1.0)
        loss = vdm_discrete_loss(
            net,
            self.process,
            x0,
            i.to(x0.device),
            noise.normal(),
            steps=self.steps,
            predicts=self.predicts,
            labels=self.to_label(),
        )
        return self.bound(x0, self.steps * loss)

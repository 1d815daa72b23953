"""Objectives over noise levels: EDM's and NCSN's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from halfbridge.nets.adapter import Labels, Network
from halfbridge.solvers.processes import EDM, Process
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.losses.denoising import denoising_loss
from halfbridge.training.losses.edm import EDM_COLUMNS
from halfbridge.training.losses.ncsn import LevelLabels, check_levels, geometric_levels, level_times, ncsn_loss
from halfbridge.training.losses.times import TimeLaw, check_levels_exist, draw_times
from halfbridge.training.losses.weighting import EDMWeight, Weighting
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.base import OnProcess
from halfbridge.training.objectives.described import TIME_LAWS, describe_labels

__all__ = ["NCSN", "EDMDenoising"]


@dataclass(frozen=True)
class EDMDenoising(OnProcess):
    """E over nu of w(nu) |D(x; nu) - x0|^2/d with the levels and the weight of a column of EDM's table 1. Karras et al. 2022.

    process     where the network lives; default hb.EDM(), whose time is nu
    kind        "edm": log nu ~ N(-1.2, 1.2^2), w = 1/c_out^2; "vp", "ve", "iddpm": w = 1/nu^2 and the levels of that column
    sigma_data  standard deviation of the data, of "edm" alone; default 0.5
    times       another law of levels in the column's place, such as `losses.LogNormal(mean=-0.4, std=1.0)`
    predicts    "data" for `nets.Precondition` and other denoisers
    ValueError for others, and for a process that has no time for some of the levels: a DiscreteVP ends at its step N.
    """

    process: Process = dataclasses.field(default_factory=EDM)
    kind: str = "edm"
    sigma_data: float | None = None
    times: TimeLaw | Mapping[str, Any] | None = None
    predicts: str = "data"
    labels: Labels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, EDM_COLUMNS)
        if self.sigma_data is not None and self.kind != "edm":
            raise ValueError(
                f"sigma_data = {self.sigma_data!r} is not in the loss of kind = {self.kind!r}; leave it out"
            )
        self.weighting  # noqa: B018  raises for a bad sigma_data
        times = TIME_LAWS.build(self.times)
        if times is not None and not isinstance(times, TimeLaw):
            raise ValueError(f"times = {times!r} must be a law of levels such as losses.LogNormal(mean=-0.4, std=1.0)")
        object.__setattr__(self, "times", times)
        check_levels_exist(self.process, self.law)

    @property
    def law(self) -> TimeLaw:
        return self.times if isinstance(self.times, TimeLaw) else EDM_COLUMNS[self.kind][0]

    @property
    def weighting(self) -> Weighting:
        return (
            EDMWeight(0.5 if self.sigma_data is None else self.sigma_data)
            if self.kind == "edm"
            else EDM_COLUMNS[self.kind][1]
        )

    @property
    def config(self) -> dict[str, Any]:
        return {
            "type": "edm",
            "kind": self.kind,
            "sigma_data": self.sigma_data,
            "times": TIME_LAWS.describe(self.times),
            "predicts": self.predicts,
            "labels": describe_labels(self.labels, self.process),
        }

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        t = draw_times(self.process, noise.uniform(), self.law).t.to(x0.device)
        return denoising_loss(
            net,
            self.process,
            x0,
            t,
            noise.normal(),
            predicts=self.predicts,
            weighting=self.weighting,
            labels=self.labels,
        )


@dataclass(frozen=True)
class NCSN(OnProcess):
    """E over levels sigma_1 > ... > sigma_L, all as likely, of sigma_i^2 |s(x0 + sigma_i z) + z/sigma_i|^2/d: `losses.ncsn_loss`.
    Song and Ermon 2019.

    process   a process with alpha = 1; default hb.EDM(sigma_L, sigma_1), whose time is sigma and whose prior is the first level's
    levels    decreasing; default 10 of them from 1 to 0.01, the paper's
    labels    None: as `nets.as_field` has it, sigma for EDM. "index": 0 for the largest .. L - 1. Or a function of t
    `times` are the process's times of the levels, where the field is trained: a grid for annealed Langevin sampling, which
    corrects at each time reached.
    ValueError for others.
    """

    named_labels: ClassVar[tuple[str, ...]] = ("index",)

    process: Process = None  # type: ignore[assignment]  # EDM from the last level to the first
    levels: Sequence[float] | torch.Tensor = ()
    predicts: str = "score"
    labels: Labels | str | None = None

    def __post_init__(self) -> None:
        levels = check_levels(self.levels if len(self.levels) else geometric_levels(1.0, 0.01, 10))
        object.__setattr__(self, "levels", tuple(levels.tolist()))
        if self.process is None:
            object.__setattr__(self, "process", EDM(levels[-1].item(), levels[0].item()))  # type: ignore[unreachable]
        super().__post_init__()
        level_times(self.process, self.levels)

    @property
    def times(self) -> torch.Tensor:
        """The times of the levels, decreasing, (L,), float64."""
        return level_times(self.process, self.levels)

    @property
    def config(self) -> dict[str, Any]:
        labels = self.labels if isinstance(self.labels, str) else describe_labels(self.labels, self.process)
        return {"type": "ncsn", "levels": list(self.levels), "predicts": self.predicts, "labels": labels}

    def to_label(self) -> Labels | None:
        return LevelLabels(self.process, tuple(self.levels)) if isinstance(self.labels, str) else self.labels

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        last = len(self.levels) - 1.0
        i = (1.0 + torch.floor(noise.uniform() * len(self.levels)).clamp(max=last)).to(x0.device)
        return ncsn_loss(
            net, self.process, self.levels, x0, i, noise.normal(), predicts=self.predicts, labels=self.to_label()
        )

"""DDPM's objectives: the simple loss, the bound and the hybrid, on the steps of a discrete process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from halfbridge.nets.adapter import Labels, Network, as_field
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import DiscreteVP
from halfbridge.training.losses.ddpm import (
    Variance,
    check_process,
    check_variances,
    ddpm_elbo,
    ddpm_loss,
    hybrid_loss,
    prior_kl,
)
from halfbridge.training.losses.decoders import Discretised, gaussian_nll
from halfbridge.training.losses.denoising import check_predicts
from halfbridge.training.losses.times import correction, draw_times
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.described import DECODER, build_labels, describe_labels

__all__ = ["DDPM", "DDPMBound", "Hybrid"]


@dataclass(frozen=True)
class DDPM:
    """E over steps i = 1..N, all as likely, of |noise error|^2/d: `losses.ddpm_loss`. Ho et al. 2020.

    process: DiscreteVP. labels: as in `nets.as_field`; the default is i - 1, diffusers' timestep. ValueError for others.
    """

    process: DiscreteVP
    predicts: str = "noise"
    labels: Labels | None = None

    def __post_init__(self) -> None:
        check_process(self.process)
        check_predicts(self.predicts)
        object.__setattr__(self, "labels", build_labels(self.labels, self.process))

    @property
    def config(self) -> dict[str, Any]:
        return {
            "type": "ddpm",
            "predicts": self.predicts,
            "labels": describe_labels(self.labels, self.process),
        }

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        i = draw_times(self.process, noise.uniform()).t.to(x0.device)
        return ddpm_loss(net, self.process, x0, i, noise.normal(), predicts=self.predicts, labels=self.labels)

    def field(self, net: Any, **options: Any) -> Field:
        return as_field(net, self.process, self.predicts, **{"labels": self.labels, **options})


@dataclass(frozen=True)
class DDPMBound:
    """-ELBO(x0)/d, nats a dimension, from one step of each sample: L_N plus `losses.ddpm_elbo` over the probability of its
    step, /d. Unbiased. Sohl-Dickstein et al. 2015; Ho et al. 2020.

    process    DiscreteVP
    variance   "posterior", "transition" or N numbers: tau^2, see `losses.ddpm_elbo`
    learned    the network returns variances too
    times      "uniform" or "likelihood": how steps are drawn; the bound is the same
    levels     None for a density at the end of the chain, or `losses.Discretised(...)` for data on levels
    ValueError for others.
    """

    process: DiscreteVP
    predicts: str = "noise"
    variance: Variance = "posterior"
    learned: bool = False
    times: str = "uniform"
    levels: Discretised | None = None
    labels: Labels | None = None

    def __post_init__(self) -> None:
        check_process(self.process)
        check_predicts(self.predicts)
        object.__setattr__(self, "labels", build_labels(self.labels, self.process))
        check_variances(self.process, self.variance)
        check_times(self.times)
        object.__setattr__(self, "levels", DECODER.build(self.levels))

    @property
    def config(self) -> dict[str, Any]:
        variance = self.variance
        return {
            "type": "ddpm_elbo",
            "predicts": self.predicts,
            "variance": variance if isinstance(variance, str) else [float(v) for v in variance],
            "learned": self.learned,
            "times": self.times,
            "levels": DECODER.describe(self.levels),
            "labels": describe_labels(self.labels, self.process),
        }

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        i, inverse = draw_times(self.process, noise.uniform(), self.times)
        term = ddpm_elbo(
            net,
            self.process,
            x0,
            i.to(x0.device),
            noise.normal(),
            predicts=self.predicts,
            variance=self.variance,
            learned=self.learned,
            decoder=gaussian_nll if self.levels is None else self.levels,
            labels=self.labels,
        )
        factor = torch.as_tensor(correction(self.process, inverse, integral=True)).to(term)
        return (prior_kl(self.process, x0).to(term) + factor * term) / x0[0].numel()

    def field(self, net: Any, **options: Any) -> Field:
        known = {"labels": self.labels, **({"learned_variance": True} if self.learned else {})}
        return as_field(net, self.process, self.predicts, **{**known, **options})


@dataclass(frozen=True)
class Hybrid:
    """`losses.hybrid_loss` at steps all as likely: the simple loss, and vlb_weight times the bound in nats a dimension, whose
    gradient goes to the learned variances only. The network returns 2 C channels. Nichol and Dhariwal 2021.

    process: DiscreteVP. levels: as in `DDPMBound`. ValueError for others and a weight that is not positive.
    """

    process: DiscreteVP
    predicts: str = "noise"
    vlb_weight: float = 0.001
    levels: Discretised | None = None
    labels: Labels | None = None

    def __post_init__(self) -> None:
        check_process(self.process)
        check_predicts(self.predicts)
        object.__setattr__(self, "labels", build_labels(self.labels, self.process))
        if not self.vlb_weight > 0.0:
            raise ValueError(f"vlb_weight = {self.vlb_weight!r} must be positive, or the variances learn nothing")
        object.__setattr__(self, "levels", DECODER.build(self.levels))

    @property
    def config(self) -> dict[str, Any]:
        return {
            "type": "hybrid",
            "predicts": self.predicts,
            "vlb_weight": self.vlb_weight,
            "levels": DECODER.describe(self.levels),
            "labels": describe_labels(self.labels, self.process),
        }

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        return hybrid_loss(
            net,
            self.process,
            x0,
            draw_times(self.process, noise.uniform()).t.to(x0.device),
            noise.normal(),
            predicts=self.predicts,
            vlb_weight=self.vlb_weight,
            decoder=gaussian_nll if self.levels is None else self.levels,
            labels=self.labels,
        )

    def field(self, net: Any, **options: Any) -> Field:
        return as_field(
            net, self.process, self.predicts, **{"labels": self.labels, "learned_variance": True, **options}
        )


def check_times(times: Any) -> None:
    if times not in ("uniform", "likelihood"):
        raise ValueError(f"times = {times!r} is not 'uniform' or 'likelihood': a bound needs the density of its times")

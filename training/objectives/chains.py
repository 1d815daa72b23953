"""DDPM's objectives: the simple loss, the bound and the hybrid, on the steps of a discrete process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from halfbridge.nets.adapter import Labels, Network
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import DiscreteVP
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.losses.ddpm import (
    VLB_WEIGHT,
    Variance,
    check_chain,
    check_variances,
    ddpm_elbo,
    ddpm_loss,
    hybrid_loss,
    prior_kl,
)
from halfbridge.training.losses.decoders import Discretised, gaussian_nll
from halfbridge.training.losses.times import correction, draw_times
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.base import OnProcess
from halfbridge.training.objectives.described import DECODER, describe_labels

__all__ = ["BOUND_TIMES", "DDPM", "DDPMBound", "Hybrid"]

BOUND_TIMES = ("uniform", "likelihood")
"""The laws of times whose density is known: a bound needs it."""


@dataclass(frozen=True)
class DDPM(OnProcess):
    """E over steps i = 1..N, all as likely, of |noise error|^2/d: `losses.ddpm_loss`. Ho et al. 2020.

    process: DiscreteVP. labels: as in `nets.as_field`; the default is i - 1, diffusers' timestep. ValueError for others.
    """

    process: DiscreteVP
    predicts: str = "noise"
    labels: Labels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chain(self.process)

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


@dataclass(frozen=True)
class DDPMBound(OnProcess):
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
        super().__post_init__()
        check_chain(self.process)
        values = check_variances(self.process, self.variance)
        if values is not None:
            object.__setattr__(self, "variance", tuple(values.tolist()))
        check_choice("times", self.times, BOUND_TIMES)
        object.__setattr__(self, "levels", DECODER.build(self.levels))

    @property
    def config(self) -> dict[str, Any]:
        variance = self.variance
        return {
            "type": "ddpm_elbo",
            "predicts": self.predicts,
            "variance": variance if isinstance(variance, str) else list(variance),
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
        return (prior_kl(self.process, x0).to(term) + factor * term) / math.prod(x0.shape[1:])

    def field(self, net: Any, **options: Any) -> Field:
        return super().field(net, **{"learned_variance": self.learned, **options})


@dataclass(frozen=True)
class Hybrid(OnProcess):
    """`losses.hybrid_loss` at steps all as likely: the simple loss, and vlb_weight times the bound in nats a dimension, whose
    gradient goes to the learned variances only. The network returns 2 C channels. Nichol and Dhariwal 2021.

    process: DiscreteVP. levels: as in `DDPMBound`. ValueError for others and a weight that is not positive
    and finite.
    """

    process: DiscreteVP
    predicts: str = "noise"
    vlb_weight: float = VLB_WEIGHT
    levels: Discretised | None = None
    labels: Labels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chain(self.process)
        if isinstance(self.vlb_weight, bool) or not isinstance(self.vlb_weight, (int, float)):
            raise TypeError(f"vlb_weight is a {type(self.vlb_weight).__name__}; pass a number such as {VLB_WEIGHT}")
        if not 0.0 < self.vlb_weight < math.inf:
            raise ValueError(
                f"vlb_weight = {self.vlb_weight!r} must be finite, and positive or the variances learn nothing"
            )
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
        return super().field(net, **{"learned_variance": True, **options})

"""The objectives that differentiate the score: implicit, sliced and high-order score matching of X_t."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch

from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.hutchinson_probe import Kind, check_kind
from halfbridge.nets.adapter import Network
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.losses.high_order import high_order_loss
from halfbridge.training.losses.implicit import implicit_loss
from halfbridge.training.losses.score_function import Score, score_function
from halfbridge.training.losses.sliced import sliced_loss
from halfbridge.training.losses.times import correction, draw_times
from halfbridge.training.losses.weighting import noise_weight
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.denoising import ScoreMatching

__all__ = ["Differentiated", "HighOrder", "Implicit", "Sliced"]


class Noised(NamedTuple):
    """What a step of these objectives sees: the score as a function of x, and x = alpha x0 + sigma z."""

    score: Score
    x: torch.Tensor
    sigma: torch.Tensor
    z: torch.Tensor
    weight: torch.Tensor
    """w(t)/d of each sample, 1/p(t) included."""


@dataclass(frozen=True)
class Differentiated(ScoreMatching):
    """What the three have in common with `Denoising`: the network's prediction, stated as the score, is trained at the same
    times with the same weights on the error of the noise, sigma^2 |score error|^2. Options beside those of `Denoising`:

    kind       "rademacher" or "gaussian": the law of the directions, if any are drawn. A step takes the normals of draw 0 for x_t
               and those, or the signs, of draws 1, 2, ... for directions
    The network is differentiated twice (with the third order, three times), so one made by torch.compile is refused: pass it as
    it was before.
    """

    kind: Kind = "rademacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind(self.kind)

    def _noised(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> Noised:
        t, inverse_density = draw_times(self.process, noise.uniform(), self.times)
        t, dtype = t.to(x0.device), accumulation(x0.dtype)
        z = noise.normal().to(dtype)
        x = self.process.perturb(t, x0, z).to(dtype)
        score = score_function(net, self.process, t, predicts=self.predicts, labels=self.labels, dtype=x0.dtype)
        weight = noise_weight(self.weighting, self.process, t) / math.prod(x0.shape[1:])
        factor = correction(self.process, inverse_density, integral=self.integral)
        weight = weight * (factor.to(weight) if isinstance(factor, torch.Tensor) else factor)
        return Noised(score, x, self.process.sigma(t), z, weight)

    def _directions(self, noise: StepNoise, n: int) -> torch.Tensor:
        """(n, batch, *shape)."""
        draw = noise.signs if self.kind == "rademacher" else noise.normal
        return torch.stack([draw(1 + k) for k in range(n)])


@dataclass(frozen=True)
class Implicit(Differentiated):
    """E over t of w(t) sigma^2 (2 tr grad s + |s|^2)/d at x_t: 2 sigma^2 w/d times `losses.implicit_loss`.

    Its mean is that of the objective "denoising" with the same options less a constant of the data, so it has the same minimiser
    and, in the mean, the same gradient, with more noise of its own: x_t alone is used, not the noise in it. Use it where x_t can
    be simulated and nothing else is known, or to check a score. Hyvarinen 2005. Options beside those of `Differentiated`:

    divergence  "exact": d products with the Jacobian a step. "hutchinson": `probes` products, unbiased
    probes      directions a sample, for "hutchinson"
    """

    name: ClassVar[str] = "implicit"

    divergence: Literal["exact", "hutchinson"] = "exact"
    probes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("divergence", self.divergence, ["exact", "hutchinson"])
        check_probes(self.probes)

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        score, x, sigma, _, weight = self._noised(net, x0, noise)
        directions = None if self.divergence == "exact" else self._directions(noise, self.probes).to(x)
        return implicit_loss(score, x, directions) * (2.0 * sigma**2 * weight).to(x.dtype)


@dataclass(frozen=True)
class Sliced(Differentiated):
    """E over t of w(t) sigma^2 (2 v^T grad s v + (v^T s)^2)/d at x_t: 2 sigma^2 w/d times `losses.sliced_loss`.

    The same mean as "implicit". Song, Garg, Shi and Ermon 2019. Options beside those of `Differentiated`:

    variance_reduced  |s|^2 in place of (v^T s)^2: the objective "implicit" with divergence="hutchinson"
    probes            directions a sample
    """

    name: ClassVar[str] = "sliced"

    variance_reduced: bool = True
    probes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probes(self.probes)

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        score, x, sigma, _, weight = self._noised(net, x0, noise)
        directions = self._directions(noise, self.probes).to(x)
        loss = sliced_loss(score, x, directions, variance_reduced=self.variance_reduced)
        return loss * (2.0 * sigma**2 * weight).to(x.dtype)


@dataclass(frozen=True)
class HighOrder(Differentiated):
    """E over t of w(t) (J1 + lambda1 (J2 + J2tr) + lambda2 J3)/d: w/d times `losses.high_order_loss`; with both lambdas 0 the
    objective "denoising". It bounds the KL of the probability flow, which the first order alone does not. Lu et al. 2022 (ICML).
    Options beside those of `Differentiated`:

    lambda1    default 1/d, as in the authors' code; 0 leaves the second order out
    lambda2    default 1/d^2, as there; 0 leaves the third order out
    projected  True: along one direction a sample. False: whole Jacobians, d products and d^2 numbers a sample
    """

    name: ClassVar[str] = "high_order"

    lambda1: float | None = None
    lambda2: float | None = None
    projected: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda1", "lambda2"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise ValueError(f"{name} = {value!r} must be a finite number of at least 0, or None for the default")

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        score, x, sigma, z, weight = self._noised(net, x0, noise)
        d = math.prod(x.shape[1:])
        loss = high_order_loss(
            score,
            x,
            sigma,
            z,
            self._directions(noise, 1)[0].to(x) if self.projected else None,
            lambda1=1.0 / d if self.lambda1 is None else self.lambda1,
            lambda2=1.0 / d**2 if self.lambda2 is None else self.lambda2,
        )
        return loss * weight.to(x.dtype)


def check_probes(probes: object) -> None:
    """Refuse what is no number of directions."""
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes = {probes!r} must be an int of at least 1: the directions of each sample")

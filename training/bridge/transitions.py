"""The Markov kernels of a chain in one direction: means, covariances, and one step of a simulation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from halfbridge.kernels import Noise, combine
from halfbridge.solvers.field import Field
from halfbridge.training.bridge.covariances import Covariance, Isotropic
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.reference import ReferenceChain

__all__ = ["Drawn", "ReferenceTransitions", "ScoreTransitions", "Sum", "Transitions"]


class Sum(NamedTuple):
    """sum_j coefficients[j] vectors[j], not added up yet: `kernels.combine` does that in one pass, together with the noise."""

    vectors: list[Tensor]
    coefficients: list[float]

    def times(self, factor: float) -> Sum:
        """factor times the sum."""
        return Sum(self.vectors, [factor * c for c in self.coefficients])

    def plus(self, other: Sum) -> Sum:
        """The sum of both."""
        return Sum([*self.vectors, *other.vectors], [*self.coefficients, *other.coefficients])


class Drawn(NamedTuple):
    """The standard normals of (seed, draw) for the samples first, first + 1, ..."""

    seed: int
    draw: int
    first: int


class Transitions(ABC):
    """The kernels N(M_k(x), C_k(x)) of one direction, k the index of the state x that a step leaves (see `Direction`).

    Forward kernels have M_k = F_k in the letters of De Bortoli et al. 2021 (k = 0, ..., N - 1, to x_{k+1}), backward ones
    M_k = B_k (k = N, ..., 1, to x_{k-1}). A subclass writes `terms`, and `covariance` where it is not 2 gamma I.
    """

    def __init__(self, reference: ReferenceChain, direction: Direction) -> None:
        self.reference, self.direction = reference, direction

    @abstractmethod
    def terms(self, k: int, x: Tensor) -> Sum:
        """M_k(x), (batch, *shape), as a sum. x must not be written to, and may be one of the vectors."""

    def covariance(self, k: int, x: Tensor) -> Covariance:
        """C_k(x): here 2 gamma I, as in DSB."""
        return Isotropic(2.0 * self.gamma(k))

    def mean(self, k: int, x: Tensor) -> Tensor:
        """M_k(x), like x."""
        return combine(*self.terms(k, x))

    def gamma(self, k: int) -> float:
        """The step size of the step from x_k."""
        return self.reference.gamma(self.direction, k)

    def step(self, k: int, x: Tensor, drawn: Drawn | None, out: Tensor) -> Tensor:
        """out <- M_k(x) + C_k(x)^(1/2) z, z the normals `drawn`, or the mean alone without. `out` may be x."""
        sum_, spread = self.terms(k, x), None if drawn is None else self.covariance(k, x)
        if drawn is None or spread is None:
            return combine(*sum_, out=out)
        if isinstance(spread, Isotropic):
            return combine(*sum_, noise=Noise(math.sqrt(spread.variance), *drawn), out=out)
        combine(*sum_, out=out)
        spread.disturb(out, *drawn)
        return out


class ReferenceTransitions(Transitions):
    """The forward kernels of the reference: N(gains[k] x, 2 gammas[k] I)."""

    def __init__(self, reference: ReferenceChain) -> None:
        super().__init__(reference, Direction.FORWARD)

    def terms(self, k: int, x: Tensor) -> Sum:
        return Sum([x], [self.reference.gains[k]])


class ScoreTransitions(Transitions):
    """The first backward kernels from a score-based model: the half-bridge that starts IPF is SGM (De Bortoli et al. 2021).

    field: grad log p_t of the data noised by the reference's process (an hb.Field of that process, trained or exact), called at
    the time of x_k. With r, v = gains, 2 gammas of the step:
      covariances None    M_k(x) = 2 x - r x + v score, variance v: what mean matching learns (`hb.ReverseDiffusion`'s step)
      covariances (N)     M_k(x) = (x + v score)/r, the exact E[x_{k-1} | x_k] for an exact score (Tweedie), with covariances[j]
                          in the interval j: see `residual_covariances`

    Means are exact where the field is and the reference has transitions="exact". ValueError for a field of another process
    or another number of covariances.
    """

    def __init__(
        self, reference: ReferenceChain, field: Field, covariances: Sequence[Covariance] | None = None
    ) -> None:
        super().__init__(reference, Direction.BACKWARD)
        if field.process != reference.process:
            raise ValueError(f"`field` belongs to {field.process!r}, but the reference is {reference.process!r}")
        if covariances is not None and len(covariances) != reference.steps:
            raise ValueError(f"`covariances` has {len(covariances)} entries; pass one a step, {reference.steps}")
        self.field, self.covariances = field, covariances

    def terms(self, k: int, x: Tensor) -> Sum:
        r, v = self.reference.gains[k - 1], 2.0 * self.reference.gammas[k - 1]
        score = self.field(self.reference.times[k], x).score
        if self.covariances is None:
            return Sum([x, score], [2.0 - r, v])
        return Sum([x, score], [1.0 / r, v / r])

    def covariance(self, k: int, x: Tensor) -> Covariance:
        return super().covariance(k, x) if self.covariances is None else self.covariances[k - 1]

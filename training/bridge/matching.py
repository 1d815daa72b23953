"""Bridge matching: the pairs of a half-bridge from the reference held at both ends (DSBM; Shi et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbridge.kernels import Noise, combine
from halfbridge.training.bridge.chains import path_index, simulate
from halfbridge.training.bridge.couplings import Coupling
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.targets import Pair

__all__ = ["BridgeMatching", "Weights", "held_at_end", "held_at_start"]


@dataclass(frozen=True)
class BridgeMatching(HalfBridge):
    """A half-step of iterative Markovian fitting: (x_0, x_N) from pi^n, the path between them from the reference held at both,
    and kernels of the other direction fitted to that.

    coupling   of the ends, in place of pi^n's own: a `Coupling`, for the first half-step
    The minimiser is E[x_next | x_k] under the mixture of held references. With the conditional covariance beside it (matched
    full kernels, between Gaussians) the chain keeps that mixture's marginals: both ends keep their laws at every iterate, from a
    coupling that has them, and the limit is the Schrödinger bridge, as of IPF. From the reference's own (x_0, x_N) the law of
    the end comes with the iterations alone.
    A fixed variance 2 gamma misses the end that a chain runs to by O(gamma), and with it the coupling, in the limit too: its last
    kernels are too wide. Between two Gaussians in the plane, in 10, 20, 40 steps, the end's covariance was off by 0.18, 0.09,
    0.05 and the coupling by 5, 3, 1 %; scalar and diagonal variances took away half of that, and between two others, whose
    coordinates are correlated, a tenth.
    """

    coupling: Coupling | None = None

    @property
    def divisible(self) -> bool:
        return self.coupling is None or self.coupling.how == "independent"  # others pair within minibatches

    def ends(self, n: int, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """x_0 and x_N of the paths first, ..., first + n - 1, (n, *shape) each."""
        if self.coupling is not None:
            return self.coupling.sample(n, seed, first)
        x = self.law.begin(n, seed, first, self.index)
        far = simulate(self.law.transitions, x, seed, first, self.index)
        return (x, far) if self.law.transitions.direction is Direction.FORWARD else (far, x)

    def states(self, n: int, seed: int, first: int = 0, *, out: Tensor | None = None) -> Tensor:
        x0, xN = self.ends(n, seed, first)
        steps, index = self.reference.steps, path_index(self.index, first)
        path = torch.empty(steps + 1, *x0.shape, dtype=x0.dtype, device=x0.device) if out is None else out
        path[0].copy_(x0)
        path[steps].copy_(xN)
        with torch.no_grad():
            for k, w in enumerate(held_at_end(self.reference)[:-1]):
                noise = Noise(math.sqrt(w.variance), seed, steps + 1 + k, index)
                combine([path[k], path[steps]], [w.here, w.end], noise=noise, out=path[k + 1])
        return path

    def pairs(self, n: int, seed: int, first: int = 0, *, means: bool) -> Iterator[Pair]:
        """As of `HalfBridge`, but for the teacher's means, which matching has no use for: ValueError."""
        if means:
            raise ValueError("bridge matching regresses onto 'increment', which needs no teacher's means")
        path = self.states(n, seed, first)
        for k in reversed(self.direction.leaves(self.reference.steps)):
            gamma = self.reference.gamma(self.direction, k)
            yield Pair(k, path[k], path[self.direction.arrives(k)], None, None, gamma)

    def expected_pairs(self, n: int, seed: int, first: int = 0) -> Iterator[Pair]:
        """`pairs` with E[there | here, x_N] (forward kernels) or E[there | here, x_0] (backward) in place of `there`: the same
        regression with far less noise, gamma O(1) instead of the step's sqrt(2 gamma). Of the kernel's covariance they leave out
        `left_out` times I."""
        path = self.states(n, seed, first)
        far = path[-1] if self.direction is Direction.FORWARD else path[0]
        held = self._held()
        for k in self.direction.leaves(self.reference.steps):
            w = held[self.direction.interval(k)]
            there = combine([path[k], far], [w.here, w.end])
            yield Pair(k, path[k], there, None, None, self.reference.gamma(self.direction, k))

    def left_out(self) -> Tensor:
        """The variance of x_next given x_k and the far end, for each interval, (N,) float64."""
        return torch.tensor([w.variance for w in self._held()], dtype=torch.float64, device="cpu")

    def _held(self) -> list[Weights]:
        return (held_at_end if self.direction is Direction.FORWARD else held_at_start)(self.reference)


@dataclass(frozen=True)
class Weights:
    """x_there | x_here, the far end ~ N(here x_here + end x_end, variance I)."""

    here: float
    end: float
    variance: float


def held_at_end(reference: ReferenceChain) -> list[Weights]:
    """[k]: x_{k+1} given x_k and x_N: r w/V, A v/V, v w/V with (r, v) the step, (A, w) from k + 1 to N and V = A^2 v + w."""
    held, gain, variance = [], 1.0, 0.0
    for r, gamma in zip(reversed(reference.gains), reversed(reference.gammas), strict=True):
        v = 2.0 * gamma
        whole = gain**2 * v + variance
        held.append(Weights(r * variance / whole, gain * v / whole, v * variance / whole))
        gain, variance = gain * r, whole
    return held[::-1]


def held_at_start(reference: ReferenceChain) -> list[Weights]:
    """[k]: x_k given x_{k+1} and x_0: r v/V, a w/V, v w/V with (a, v) from 0 to k, (r, w) the step and V = r^2 v + w."""
    held, gain, variance = [], 1.0, 0.0
    for r, gamma in zip(reference.gains, reference.gammas, strict=True):
        w = 2.0 * gamma
        whole = r**2 * variance + w
        held.append(Weights(r * variance / whole, gain * w / whole, variance * w / whole))
        gain, variance = gain * r, whole
    return held

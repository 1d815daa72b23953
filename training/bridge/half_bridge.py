"""One half-bridge as a regression: from the chain of one iterate to the kernels of the next, which run the other way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from halfbridge.training.bridge.chains import PathLaw, Step, simulate
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.targets import Pair
from halfbridge.training.bridge.transitions import Transitions

__all__ = ["HalfBridge", "Regressor"]


@dataclass(frozen=True)
class HalfBridge:
    """Fit the kernels that lead back along `law`, which is pi^n: pi^{n+1} will run them from the other end.

    index     n: 0 fits the first backward kernels (SGM), 1 the first forward ones
    law       pi^n; its transitions are the teacher
    previous  the kernels of the wanted direction from two half-bridges before, to start from; None where there are none
    """

    index: int
    law: PathLaw
    previous: Transitions | None = None

    @property
    def reference(self) -> ReferenceChain:
        """The reference chain."""
        return self.law.transitions.reference

    @property
    def direction(self) -> Direction:
        """Of the kernels to be fitted."""
        return self.law.transitions.direction.other

    @property
    def divisible(self) -> bool:
        """Whether a path is the same however many are simulated with it."""
        return True

    def states(self, n: int, seed: int, first: int = 0, *, out: Tensor | None = None) -> Tensor:
        """Paths first, ..., first + n - 1 of the teacher whole, (N + 1, n, *shape), entry k being x_k; in `out` where given."""
        x = self.law.begin(n, seed, first, self.index)
        return simulate(self.law.transitions, x, seed, first, self.index, keep=True, out=out)

    def pairs(self, n: int, seed: int, first: int = 0, *, means: bool) -> Iterator[Pair]:
        """Paths first, ..., first + n - 1 of the teacher, as one Pair a step in the order of simulation.

        means: with the teacher's means at both points, which costs a second evaluation of the teacher a step. Tensors are
        buffers, overwritten when the next pair is asked for; nothing carries a gradient.
        """
        for step in self.law.walk(n, seed, first, self.index):
            yield self.pair(step, means=means)

    def pair(self, step: Step, *, means: bool) -> Pair:
        """A step of the teacher's chain as a pair: the teacher is called with the label of the state that it left."""
        teacher = self.law.transitions
        at_here: Tensor | None = None
        if means:
            with torch.no_grad():
                at_here = teacher.mean(step.k, step.after)
        at_there = step.mean if means else None
        label = teacher.direction.arrives(step.k)
        return Pair(label, step.after, step.before, at_there, at_here, teacher.gamma(step.k))


class Regressor(Protocol):
    """What fits a half-bridge: exactly (`AffineRegressor`), or by training a network that is given the label of each state.

    It may keep what it has between calls (networks, optimisers); `ipf` calls it with the half-bridges in order.
    """

    def fit(self, half: HalfBridge) -> Transitions:
        """Kernels of the direction `half.direction`, in half.reference's steps."""

"""Iterative proportional fitting: half-bridges in turn, whatever fits them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from halfbridge.solvers.reference.covariance import whole_number
from halfbridge.training.bridge.chains import PathLaw
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.ends import End, check_ends
from halfbridge.training.bridge.half_bridge import HalfBridge, Regressor
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.transitions import ReferenceTransitions, Transitions

__all__ = ["Iterate", "ipf", "reference_iterate"]


@dataclass(frozen=True)
class Iterate:
    """pi^n of IPF, n = `index`: n half-bridges are done.

    start, end: the laws at 0 and T. forward, backward: the newest kernels of each direction; `forward` is the reference's for
    n < 2, `backward` is None for n = 0.
    """

    index: int
    start: End
    end: End
    forward: Transitions
    backward: Transitions | None = None

    @property
    def law(self) -> PathLaw:
        """pi^n itself: the forward kernels from `start` for even n, the backward kernels from `end` for odd n."""
        if self.index % 2 and self.backward is not None:
            return PathLaw(self.end, self.backward)
        return PathLaw(self.start, self.forward)

    @property
    def reference(self) -> ReferenceChain:
        """The reference chain."""
        return self.forward.reference

    @property
    def half_bridge(self) -> HalfBridge:
        """The regression from pi^n to the kernels of pi^{n+1}."""
        previous = self.forward if self.index % 2 else self.backward
        # The reference's kernels, which pi^1 still has, were not learned.
        return HalfBridge(self.index, self.law, previous if self.index >= 2 else None)

    def after(self, fitted: Transitions) -> Iterate:
        """pi^{n+1}, by the kernels that `half_bridge` asks for. ValueError for kernels of another direction or reference."""
        half = self.half_bridge
        if fitted.direction is not half.direction or fitted.reference != half.reference:
            raise ValueError(
                f"{type(fitted).__name__} are {fitted.direction.value} kernels under {fitted.reference!r} for the "
                f"{half.direction.value} half-bridge under {half.reference!r}; fit kernels of half.direction in half.reference"
            )
        if half.direction is Direction.FORWARD:
            return Iterate(self.index + 1, self.start, self.end, fitted, self.backward)
        return Iterate(self.index + 1, self.start, self.end, self.forward, fitted)


def reference_iterate(start: End, end: End, reference: ReferenceChain) -> Iterate:
    """pi^0: the reference chain from `start`. ValueError where the two laws are not on one space."""
    check_ends(start, end)
    return Iterate(0, start, end, ReferenceTransitions(reference))


def ipf(begin: Iterate, regressor: Regressor, half_bridges: int) -> Iterator[Iterate]:
    """pi^{n+1}, pi^{n+2}, ..., as many as `half_bridges`, after begin = pi^n (`reference_iterate` is pi^0).

    pi^{2n+1} = argmin {KL(pi || pi^{2n}) : pi_N = end}, pi^{2n+2} = argmin {KL(pi || pi^{2n+1}) : pi_0 = start}: each iterate
    runs, from the law of the other end, the kernels that lead back along the one before, as `regressor` fits them. So two
    half-bridges are one iteration of DSB, and the first is a score-based model. Any iterate can be begun from, which is how a
    run goes on.

    Raises ValueError for half_bridges < 1, and for kernels of another direction or another reference from the regressor.
    De Bortoli et al. 2021, algorithm 1.
    """
    whole_number("half_bridges", half_bridges, " (two are one iteration of DSB)")
    return _iterates(begin, regressor, half_bridges)


def _iterates(now: Iterate, regressor: Regressor, half_bridges: int) -> Iterator[Iterate]:
    for _ in range(half_bridges):
        now = now.after(regressor.fit(now.half_bridge))
        yield now

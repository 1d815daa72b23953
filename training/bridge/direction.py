"""The two ways along a chain x_0, ..., x_N, and the one place where their indices are worked out."""

from __future__ import annotations

from enum import Enum

__all__ = ["Direction"]


class Direction(Enum):
    """FORWARD steps from x_k to x_{k+1} for k = 0, ..., N - 1, BACKWARD from x_k to x_{k-1} for k = N, ..., 1.

    A step is called by the k of the state that it leaves, in both directions, in simulation and in training: it is also the
    label that a network is given with x_k. The interval between x_j and x_{j+1} has the index j and the step size
    gamma_{j+1} of the papers, whichever way it is crossed.
    """

    FORWARD = "forward"
    BACKWARD = "backward"

    @property
    def other(self) -> Direction:
        """The opposite direction."""
        return Direction.BACKWARD if self is Direction.FORWARD else Direction.FORWARD

    @property
    def parity(self) -> int:
        """Of the n whose iterates pi^n run this way: 0 forward, 1 backward."""
        return 0 if self is Direction.FORWARD else 1

    def leaves(self, steps: int) -> range:
        """The k of the states left on the way along a chain of N = `steps` steps, in order."""
        return range(steps) if self is Direction.FORWARD else range(steps, 0, -1)

    def arrives(self, k: int) -> int:
        """The index of the state that the step from x_k leads to."""
        return k + 1 if self is Direction.FORWARD else k - 1

    def interval(self, k: int) -> int:
        """The index of the interval that the step from x_k crosses."""
        return k if self is Direction.FORWARD else k - 1

    def start(self, steps: int) -> int:
        """The index of the state that the chain starts from."""
        return 0 if self is Direction.FORWARD else steps

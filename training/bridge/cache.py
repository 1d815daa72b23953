"""A cache of trajectories: the pairs that a half-bridge is regressed on, simulated anew from time to time."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from halfbridge.training.bridge.chains import simulate
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.network import label
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.regression import Batch
from halfbridge.training.bridge.room import buffer
from halfbridge.training.bridge.targets import TARGETS

__all__ = ["TrajectoryCache"]


class TrajectoryCache:
    """`paths` trajectories of N steps in one buffer: paths N rows of (state, what is regressed onto).

    For a target that needs no mean of the teacher ("increment") the states are kept, each for both its pairs: (N + 1) paths
    of them; for the others states and values, 2 N paths. A refresh overwrites all: its paths are refresh paths, ...,
    (refresh + 1) paths - 1 of the half-bridge, so the contents are a function of the teacher, the seed and `refresh` alone (to
    the last bit with the same `chunk`, the number simulated at once), and nothing of them need be saved.

    where, limit, folder: as of `room.buffer`.
    """

    def __init__(
        self,
        reference: ReferenceChain,
        like: Tensor,
        paths: int,
        target: str,
        *,
        where: str = "auto",
        limit: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        chunk: int = 8192,
    ) -> None:
        self.reference, self.paths, self.target, self.chunk = reference, paths, TARGETS[target], chunk
        self.device = like.device
        count = 2 * reference.steps if self.target.teacher else reference.steps + 1
        self._states = buffer((count, paths, *like.shape[1:]), like.dtype, like.device, where, limit, folder)
        self._gammas = torch.tensor(reference.gammas, dtype=torch.float64, device="cpu")
        self._direction = Direction.BACKWARD
        self._held: tuple[HalfBridge, int, int] | None = None

    def __len__(self) -> int:
        return self.reference.steps * self.paths

    @property
    def states(self) -> Tensor:
        """All that is held, one state a row."""
        return self._states.flatten(0, 1)

    def hold(self, half: HalfBridge, seed: int, refresh: int) -> None:
        """Simulate that refresh of the half-bridge, unless it is there. FloatingPointError where the teacher's chain is not
        finite."""
        held = self._held
        if held is not None and held[0] is half and held[1:] == (seed, refresh):
            return
        self._held, self._direction = None, half.direction
        for at in range(0, self.paths, self.chunk):
            self._fill(half, seed, refresh * self.paths + at, at, min(at + self.chunk, self.paths))
        self._held = (half, seed, refresh)

    def batch(self, rows: Tensor) -> Batch:
        """The rows, int64 on the CPU: row j paths + p is path p in the interval between x_j and x_{j+1}."""
        interval = torch.div(rows, self.paths, rounding_mode="floor")
        k = interval if self._direction is Direction.FORWARD else interval + 1
        if self.target.teacher:
            here, value = rows, rows + len(self)
        else:
            back, forth = rows, rows + self.paths
            here, value = (back, forth) if self._direction is Direction.FORWARD else (forth, back)
        at, onto = (self._rows(index) for index in (here, value))
        return Batch(at, onto, label(self.reference, k, at), self._gammas[interval])

    def _rows(self, index: Tensor) -> Tensor:
        return self.states[index.to(self._states.device)].to(self.device)

    def _fill(self, half: HalfBridge, seed: int, first: int, start: int, stop: int) -> None:
        here = self._states[:, start:stop]
        n = stop - start
        if self.target.teacher:
            for pair in half.pairs(n, seed, first, means=True):
                j = half.direction.interval(pair.k)
                here[j].copy_(pair.here)
                here[self.reference.steps + j].copy_(self.target.value(pair))
            return
        law = half.law
        x = law.begin(n, seed, first, half.index)
        if self._states.device == self.device:
            simulate(law.transitions, x, seed, first, half.index, keep=True, out=here)
        else:
            here.copy_(simulate(law.transitions, x, seed, first, half.index, keep=True))

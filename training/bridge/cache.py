"""A cache of trajectories: the pairs that a half-bridge is regressed on, simulated anew from time to time."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from halfbridge.nets.conditioned import SharedLabels
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.matching import BridgeMatching
from halfbridge.training.bridge.network import interval_labels
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.regression import Batch
from halfbridge.training.bridge.room import buffer
from halfbridge.training.bridge.targets import TARGETS
from halfbridge.training.trainer import rows_on
from halfbridge.training.workers import ALONE, Workers, finite_in_all

__all__ = ["TrajectoryCache"]


class TrajectoryCache:
    """`paths` trajectories of N steps in one buffer: paths N rows of (state, what is regressed onto).

    For a target that needs no mean of the teacher ("increment") the states are kept, each for both its pairs: (N + 1) paths
    of them; for the others, and for bridge matching's expected pairs, states and values, 2 N paths. A refresh overwrites
    all: its paths are refresh paths, ..., (refresh + 1) paths - 1 of the half-bridge, so the contents are a function of the
    teacher, the seed and `refresh` alone (to the last bit with the same `chunk`), and nothing of them need be saved.

    Several processes hold all paths each, and simulate a share of each chunk where the teacher is learned; against the
    reference itself, which costs no network, each simulates all. So they hold the same bits, and those of one process but for
    the rounding of a network over batches.

    where, limit, folder: as of `room.buffer`. chunk: the number of paths simulated at once.
    """

    def __init__(
        self,
        reference: ReferenceChain,
        like: Tensor,
        paths: int,
        target: str,
        *,
        matching: bool = False,
        where: str = "auto",
        limit: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        chunk: int = 2048,
        workers: Workers = ALONE,
    ) -> None:
        self.reference, self.paths, self.target, self.chunk = reference, paths, TARGETS[target], chunk
        self.workers = workers
        self.device = like.device
        self._pairs = matching or self.target.teacher
        count = 2 * reference.steps if self._pairs else reference.steps + 1
        self._states = buffer(
            (count, paths, *like.shape[1:]), like.dtype, like.device, where, limit, folder, workers.count
        )
        self._gammas = torch.tensor(reference.gammas, dtype=torch.float64, device="cpu")
        self._known = torch.zeros_like(self._gammas)
        self._labels = {way: interval_labels(reference, way, like) for way in Direction}
        self._direction = Direction.BACKWARD
        self._held: tuple[HalfBridge, int, int] | None = None

    def __len__(self) -> int:
        return self.reference.steps * self.paths

    @property
    def states(self) -> Tensor:
        """All that is held, one state a row."""
        return self._states.flatten(0, 1)

    def hold(self, half: HalfBridge, seed: int, refresh: int) -> None:
        """Simulate that refresh of the half-bridge, unless it is there. FloatingPointError, in all processes, where the teacher's
        chain is not finite."""
        held = self._held
        if held is not None and held[0] is half and held[1:] == (seed, refresh):
            return
        self._held, self._direction = None, half.direction
        if isinstance(half, BridgeMatching):
            self._known = half.left_out() / (2.0 * self._gammas)
        fill = self._share if self.workers.count > 1 and half.index > 0 else self._fill
        for at in range(0, self.paths, self.chunk):
            fill(half, seed, refresh * self.paths + at, self._states[:, at : at + self.chunk])
        self._held = (half, seed, refresh)

    def batch(self, rows: Tensor, shared: bool = False) -> Batch:
        """The rows, int64 on the CPU: row j paths + p is path p in the interval between x_j and x_{j+1}.

        shared: with labels for networks that embed each of them once (`shares_labels`).
        """
        interval = torch.div(rows, self.paths, rounding_mode="floor")
        if self._pairs:
            here, value = rows, rows + len(self)
        else:
            back, forth = rows, rows + self.paths
            here, value = (back, forth) if self._direction is Direction.FORWARD else (forth, back)
        labels, of = self._labels[self._direction], interval.to(self.device)
        told = SharedLabels(labels, of) if shared else labels[of]
        return Batch(self._rows(here), self._rows(value), told, self._gammas[interval], self._known[interval])

    def _rows(self, index: Tensor) -> Tensor:
        return rows_on(self.states, index, self.device)

    def _share(self, half: HalfBridge, seed: int, first: int, held: Tensor) -> None:
        """`_fill`, each process a share of the paths. Shares are of one size, so that the last may overlap."""
        n, workers = held.shape[1], self.workers
        size = -(-n // workers.count)
        starts = [min(i * size, n - size) for i in range(workers.count)]
        mine = torch.empty(len(held), size, *held.shape[2:], dtype=held.dtype, device=self.device)

        def share() -> Tensor:
            self._fill(half, seed, first + starts[workers.index], mine)
            return mine

        def whole() -> Tensor:
            self._fill(half, seed, first, held)
            return held

        parts = workers.gather(finite_in_all(workers, share, whole))
        for start, part in zip(starts, parts, strict=True):
            held[:, start : start + size].copy_(part)

    def _fill(self, half: HalfBridge, seed: int, first: int, held: Tensor) -> None:
        """Paths first, first + 1, ... of the half-bridge, in `held`, (states, paths, *shape)."""
        n = held.shape[1]
        if not self._pairs:
            if held.device == self.device:
                half.states(n, seed, first, out=held)
            else:
                held.copy_(half.states(n, seed, first))
            return
        if isinstance(half, BridgeMatching):
            pairs = half.expected_pairs(n, seed, first)
        else:
            pairs = half.pairs(n, seed, first, means=True)
        for pair in pairs:
            j = half.direction.interval(pair.k)
            held[j].copy_(pair.here)
            held[self.reference.steps + j].copy_(self.target.value(pair))

"""The training of one half-bridge's networks, step by step."""

from __future__ import annotations

from typing import Any, cast

import torch

from halfbridge.training.bridge.cache import TrajectoryCache
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.network import shares_labels
from halfbridge.training.bridge.regression import Regression
from halfbridge.training.data.bijection import scattered
from halfbridge.training.data.order import shuffled
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import Task, Trainer
from halfbridge.training.workers import Workers

__all__ = ["HalfBridgeTrainer"]

SORTED = 1 << 16  # rows whose order is had by sorting, which keeps a few: of more it would be larger than their cache


class HalfBridgeTrainer(Trainer):
    """A `Trainer` whose examples are the rows of a cache of the teacher's trajectories, simulated anew every `refresh` steps.

    Steps are counted over the run, half-bridge after half-bridge, each of settings.steps, and what dropout draws follows from
    that count. Batches take the rows in shuffled passes, and each refresh begins a pass of its own. So the
    state after a step is a function of the arguments, the teacher and the step, as of `Trainer`.
    """

    def __init__(
        self,
        half: HalfBridge,
        net: torch.nn.Module,
        regression: Regression,
        cache: TrajectoryCache,
        refresh: int,
        settings: Settings,
        workers: Workers,
    ) -> None:
        super().__init__(net, cast(Any, regression), cache.states, None, settings, workers)
        self.half, self.regression, self.cache = half, regression, cache
        self.refresh = min(refresh, settings.steps)  # beyond, it is never
        self.count = len(cache)
        heads = () if regression.head is None else (regression.head.net,)
        self.shared = all(map(shares_labels, (self.model["net"], *heads)))

    @property
    def run_step(self) -> int:
        return self.half.index * self.settings.steps + self.step

    def _gradient(self) -> torch.Tensor:
        self.cache.hold(self.half, self.settings.seed, self.step // self.refresh)
        return super()._gradient()

    def _order(self) -> torch.Tensor:
        rows, batch = self.count, self.settings.batch_size
        fill, at = divmod(self.step, self.refresh)
        fills = self.half.index * -(-self.settings.steps // self.refresh) + fill
        passes = -(-self.refresh * batch // rows)
        order = shuffled if rows <= SORTED else scattered
        return order(rows, self.settings.seed, at, batch, fills * passes)

    def _task(self, rows: torch.Tensor, first: int) -> Task:
        batch = self.cache.batch(rows, self.shared)
        return Task(batch.here, lambda net, noise: self.regression(net, batch))

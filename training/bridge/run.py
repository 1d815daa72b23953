"""The run of a bridge: half-bridges in turn, what is known of them, and its state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.half_trainer import HalfBridgeTrainer
from halfbridge.training.bridge.ipf import Iterate
from halfbridge.training.bridge.monitors import Monitor, Monitored, Monitors
from halfbridge.training.bridge.network import NetworkTransitions
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.residuals import NotFitted
from halfbridge.training.bridge.transitions import ReferenceTransitions, Transitions
from halfbridge.training.log import SMOOTHED
from halfbridge.training.notices import notice
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import Asked, NotFinite, Step

__all__ = ["BridgeRun", "restore"]

KEPT = 3
"""Iterates in a checkpoint, unless kernels call those of all iterates before."""


class Diverged(NamedTuple):
    """How a run diverged."""

    why: str
    good: int
    """The index of the last good iterate."""


class BridgeRun:
    """The newest iterate, the training of the next one, and the lines and losses so far.

    iterates: pi^0 and the last KEPT, or all where kernels call those of all before. now: pi^n, the newest. trainer: of the
    half-bridge from pi^n, None between two. stopped: why the run ended, None while it goes on; diverged: how, where it did.
    """

    def __init__(self, begin: Iterate, regressor: NetworkRegressor, monitors: Monitors) -> None:
        self.regressor, self.monitors = regressor, monitors
        self.iterates = [begin]
        self.rows: list[Monitor] = []
        self.losses: list[Tensor] = []
        self.trainer: HalfBridgeTrainer | None = None
        self.stopped: str | None = None
        self.diverged: Diverged | None = None

    @property
    def settings(self) -> Settings:
        """Of each half-bridge."""
        return self.regressor.settings

    @property
    def now(self) -> Iterate:
        """pi^n."""
        return self.iterates[-1]

    @property
    def good(self) -> Iterate:
        """pi^n, or the last good iterate of a run that diverged."""
        last = self.now.index if self.diverged is None else self.diverged.good
        return next(it for it in reversed(self.iterates) if it.index <= last)

    @property
    def step(self) -> int:
        """Steps of training over all half-bridges."""
        done = 0 if self.trainer is None else self.trainer.step
        return self.now.index * self.settings.steps + done

    def begin(self) -> HalfBridgeTrainer | None:
        """The training of the next half-bridge; None where its kernels are had without."""
        if self.trainer is None and self.regressor.trains(self.now.half_bridge):
            self.trainer = self.regressor.begin(self.now.half_bridge)
        return self.trainer

    def advance(self, asked: Asked) -> Step | None:
        """A step of training; None where it is not finite: then the run has `diverged`. Where it is the teacher's chain, pi^n is
        no good, and the last good iterate is the one before."""
        assert self.trainer is not None
        try:
            return self.trainer.advance(asked)
        except NotFinite as error:
            self._diverge(error, self.now.index)
        except FloatingPointError as error:
            self._diverge(error, self.now.index - 1)
        return None

    def finish(self, seconds: float) -> Monitored | None:
        """Take the half-bridge's kernels, measure them (process 0 does, for all), and go on to the next; None where they
        diverge."""
        half, trainer, workers = self.now.half_bridge, self.trainer, self.regressor.workers
        losses = torch.empty(0, dtype=torch.float64) if trainer is None else trainer.losses.clone()
        loss = float(losses[-SMOOTHED:].mean()) if len(losses) else math.nan
        try:
            fitted = self.regressor.from_score(half) if trainer is None else self.regressor.finish(trainer)
        except FloatingPointError as error:  # of the new kernels, else of the teacher's chain
            self._diverge(error, self.now.index - (not isinstance(error, NotFitted)))
            return None
        after, samples = self.now.after(fitted), None

        def measure() -> list[Any] | str:
            nonlocal samples
            try:
                row, samples = self.monitors.measure(after, self.now, self.rows, loss, seconds)
            except FloatingPointError as error:
                return str(error)
            return list(row)

        told = workers.tell(workers.once(measure))
        if not isinstance(told, list):
            self._diverge(told, self.now.index)
            return None
        self.iterates.append(after)
        if self.regressor.target != "score":
            del self.iterates[1:-KEPT]
        self.rows.append(Monitor(*told))
        self.losses.append(losses)
        self.trainer = None
        return Monitored(self.rows[-1], samples)

    def _diverge(self, why: object, good: int) -> None:
        way = self.now.half_bridge.direction.value  # counted as in monitors.csv, by the iterate that it makes
        self._ended(Diverged(f"half-bridge {self.now.index + 1} ({way}) diverged: {why}", max(0, good)))

    def _ended(self, diverged: Diverged) -> None:
        self.diverged, self.stopped = diverged, diverged.why
        notice(f"{diverged.why}. The last good iterate is returned")

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, but for the call's arguments."""
        kept = self.iterates[1:]
        trained = {
            way
            for it in self.iterates
            for way, kernels in _kernels(it).items()
            if isinstance(kernels, NetworkTransitions)
        }
        return {
            "iterates": [{"index": it.index, **self.regressor.state(it.law.transitions)} for it in kept],
            "begun": {way.value: net.state_dict() for way, net in self.regressor.nets.items() if way not in trained},
            "heads": {
                way.value: head.state_dict()
                for way, head in self.regressor.heads.items()
                if way not in trained and head is not None
            },
            "trainer": None if self.trainer is None else self.trainer.state(),
            "rows": [list(row) for row in self.rows],
            "losses": list(self.losses),
            "diverged": None if self.diverged is None else self.diverged._asdict(),
        }

    def load(self, state: dict[str, Any], step: int) -> None:
        """Go on from a `state` after `step` steps; from one that diverged there is no way on, which is told. ValueError for
        other networks."""
        regressor = self.regressor
        for name, modules in (("begun", regressor.nets), ("heads", regressor.heads)):
            for way, weights in state[name].items():
                module: Any = modules[Direction(way)]
                module.load_state_dict(weights)
        first = self.iterates[0]
        restored = restore(regressor, first.reference, state["iterates"])
        self.iterates += [Iterate(it.number, first.start, first.end, it.forward, it.backward) for it in restored]
        self.rows = [Monitor(*row) for row in state["rows"]]
        self.losses = list(state["losses"])
        if state["trainer"] is not None:
            self.trainer = regressor.begin(self.now.half_bridge)
            self.trainer.load(state["trainer"], step - self.now.index * self.settings.steps)
        if state["diverged"] is not None:
            self._ended(Diverged(**state["diverged"]))


class Restored(NamedTuple):
    """pi^number without its end laws: the kernels as of `Iterate`."""

    number: int
    forward: Transitions
    backward: Transitions | None


def restore(regressor: NetworkRegressor, reference: ReferenceChain, saved: list[dict[str, Any]]) -> list[Restored]:
    """The iterates of a `BridgeRun.state`. Of those before the first there is only what later ones need: with the target "score",
    whose kernels call all their teachers, none is left out."""
    forward: Transitions = ReferenceTransitions(reference)
    teacher, backward, made = forward, None, []
    for one in saved:
        way = Direction.BACKWARD if one["index"] % 2 else Direction.FORWARD
        teacher = regressor.restore(reference, way, teacher, one)
        forward, backward = (teacher, backward) if way is Direction.FORWARD else (forward, teacher)
        made.append(Restored(one["index"], forward, backward))
    return made


def _kernels(iterate: Iterate) -> dict[Direction, Any]:
    return {Direction.FORWARD: iterate.forward, Direction.BACKWARD: iterate.backward}

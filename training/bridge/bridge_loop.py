"""The loop of a bridge's run: its steps and half-bridges, log, checkpoints, pictures, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from halfbridge.training.bridge.bridge_folder import BridgeFolder
from halfbridge.training.bridge.bridge_plots import plot_monitors, plot_samples
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.ipf import Iterate
from halfbridge.training.bridge.monitors import Monitor, Monitored, StopRule
from halfbridge.training.bridge.run import BridgeRun
from halfbridge.training.bridge.views import Bridge
from halfbridge.training.folder import saved_if_it_fails
from halfbridge.training.interrupts import Heard, Interrupted, watch
from halfbridge.training.log import SMOOTHED, Log, Row
from halfbridge.training.modes import training_mode
from halfbridge.training.trainer import Asked, Step

__all__ = ["BridgeLoop", "BridgeState"]


class BridgeState(NamedTuple):
    """What a callback is told after each step. The networks are those in training: look, do not keep."""

    iterate: int
    """n: the half-bridge in training is that from pi^n to pi^{n+1}."""
    direction: str
    """Of the kernels in training."""
    step: int
    """Steps done over all half-bridges."""
    loss: float
    """Mean loss of the step's batch."""
    smoothed: float
    """Mean of the last 100 losses of the half-bridge."""
    gradient_norm: float
    """Before clipping."""
    lr: float
    seconds: float
    """Time in training."""
    monitors: list[Monitor]
    """Of the iterates so far."""
    now: Iterate
    """pi^n with its end laws; `now.law` samples it."""
    net: torch.nn.Module
    """The network in training, in train mode."""
    average: torch.nn.Module
    """Its average of the first decay, in eval mode."""

    @property
    def bridge(self) -> Bridge | None:
        """pi^n as a `Bridge`; None in the first half-bridge, before which there are no backward kernels."""
        return None if self.now.backward is None else Bridge(self.now.forward, self.now.backward)


class BridgeLoop:
    """A run with its log, checkpoints, pictures, progress and signals."""

    def __init__(
        self,
        run: BridgeRun,
        folder: BridgeFolder | None,
        plots: bool,
        progress: bool,
        callback: Callable[[BridgeState], Any] | None,
    ) -> None:
        self.run, self.folder, self.plots, self.callback = run, folder, plots, callback
        self.settings, self.workers = run.settings, run.regressor.workers
        self.log: Log | None = None
        self.show, self.ended = progress and self.workers.first, False

    def all(self, half_bridges: int, stop: StopRule) -> None:
        """All half-bridges that are left, or those until something ends the run."""
        run, folder, self.half_bridges = self.run, self.folder, half_bridges
        with watch(folder is not None) as heard:
            if folder is not None:
                self.save()
                self.log = self.workers.once(
                    lambda: Log(folder.path, after=run.step, tensorboard=self.settings.tensorboard)
                )
                self.workers.once(lambda: folder.write_monitors(run.rows))
            before = 0.0 if self.log is None else self.log.seconds
            self.started = time.perf_counter() - before
            total = half_bridges * self.settings.steps
            with tqdm(total=total, initial=min(run.step, total), unit="step", disable=not self.show) as bar:
                self.bar = bar
                try:
                    while run.stopped is None:
                        run.stopped = stop.reason(run.rows)
                        if run.stopped is None and run.now.index >= half_bridges:
                            run.stopped = "iterations"
                        if run.stopped is None:
                            self.half_bridge(heard)
                            if run.diverged is not None:  # beside what is there, which may be the healthy one
                                self.save(beside=1, again=True)
                                self.end(self.asked(heard), heard)
                finally:
                    if self.log is not None:
                        self.log.close()

    def half_bridge(self, heard: Heard) -> None:
        """The steps of a half-bridge that are left, and its kernels; until it diverges, or something ends the run."""
        run, trainer = self.run, self.run.begin()
        if trainer is not None:
            with training_mode(trainer.model, trainer.device):
                while trainer.step < self.settings.steps:
                    done = run.advance(Asked(heard.signal is not None, self.ended))
                    if done is None:
                        return
                    self.told(done)
                    # several agree in the next step
                    asked = done.asked if self.workers.count > 1 else Asked(heard.signal is not None, self.ended)
                    if any(asked) and trainer.step < self.settings.steps:
                        self.save()
                        self.end(asked, heard)
                        return
        measured = run.finish(time.perf_counter() - self.started)
        if measured is not None:
            self.write(measured)
            self.end(self.asked(heard), heard)

    def asked(self, heard: Heard) -> Asked:
        """What any of the processes was asked for."""
        flags = torch.tensor([heard.signal is not None, self.ended], dtype=torch.float32, device=self.workers.device)
        self.workers.add(flags)
        return Asked(*map(bool, flags.tolist()))

    def end(self, asked: Asked, heard: Heard) -> None:
        """End the run, all of which is saved, where that is asked for: Interrupted for a signal."""
        if asked.stop and self.folder is not None:
            name = "a signal" if heard.signal is None else heard.signal.name
            left = "resume it to go on" if self.run.now.index < self.half_bridges else "it is complete"
            left = left if self.run.diverged is None else self.run.diverged.why
            raise Interrupted(
                f"stopped by {name} after step {self.run.step}; the run is saved in {self.folder.path}: {left}"
            )
        if asked.end and self.run.diverged is None:
            self.run.stopped = "the callback"

    def told(self, done: Step) -> None:
        """Log, callback, progress and checkpoint of a step."""
        run, settings, trainer = self.run, self.settings, self.run.trainer
        assert trainer is not None
        recent = trainer.losses[max(0, trainer.step - SMOOTHED) : trainer.step].mean().item()
        seconds = time.perf_counter() - self.started
        row = Row(run.step, done.loss, recent, done.gradient_norm, done.lr, seconds, run.step * settings.batch_size)
        last = trainer.step == settings.steps
        with saved_if_it_fails(run, self.folder, self.workers):
            if self.log is not None and (last or run.step % settings.log_every == 0):
                self.log.row(row)
            if self.callback is not None:
                half = trainer.half
                nets = trainer.model["net"], trainer.averaged()[0]
                state = BridgeState(half.index, half.direction.value, *row[:6], list(run.rows), run.now, *nets)
                self.ended = self.callback(state) is True or self.ended
                trainer.model.train()  # whatever mode it was put in to be looked at
            self.bar.update()
            if not self.bar.disable:
                self.bar.set_description(
                    f"half-bridge {trainer.half.index + 1}, {trainer.half.direction.value}", refresh=False
                )
                self.bar.set_postfix(loss=f"{recent:.4g}", refresh=False)
        if not last and settings.save_every and run.step % settings.save_every == 0:
            self.save()

    def write(self, measured: Monitored) -> None:
        """The lines, pictures and checkpoint of an iterate. A run killed in between goes on from before them, and writes them
        again."""
        folder, run = self.folder, self.run
        if folder is None:
            return

        def act() -> None:
            folder.write_monitors(run.rows)
            if self.plots and measured.samples is not None:
                plot_monitors(run.rows, run.losses, folder.path / "monitors.png", run.monitors.floors())
                way = Direction(measured.row.direction)
                name = f"{measured.row.iterate:03d}-{way.value}.png"
                plot_samples(measured.samples, run.monitors.law_at_the_end(way), folder.path / "samples" / name)

        with saved_if_it_fails(run, folder, self.workers):
            self.workers.once(act)
        self.save(again=True)  # in place of one before the half-bridge's kernels were taken

    def save(self, *, beside: int = 0, again: bool = False) -> None:
        """A checkpoint, where there is a folder: see `RunFolder.save`."""
        folder, run = self.folder, self.run
        if folder is None:
            return

        def act() -> None:
            if self.log is not None:
                self.log.sync()
            folder.save(run, beside=beside, again=again)

        self.workers.once(act)

"""The loop of a bridge's run: its steps and half-bridges, log, checkpoints, pictures, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from halfbridge.training.bridge.bridge_folder import BridgeFolder
from halfbridge.training.bridge.bridge_plots import plot_monitors, plot_samples
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.monitors import Monitor, Monitored, StopRule, table
from halfbridge.training.bridge.run import BridgeRun
from halfbridge.training.durable import write_file
from halfbridge.training.interrupts import Heard, Interrupted, watch
from halfbridge.training.log import SMOOTHED, Log, Row
from halfbridge.training.trainer import Asked, Step, training_mode

__all__ = ["BridgeLoop", "BridgeState"]


class BridgeState(NamedTuple):
    """What a callback is told after each step."""

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
        self.settings, self.workers = run.regressor.settings, run.regressor.workers
        self.log: Log | None = None
        self.show, self.ended = progress and self.workers.first, False

    def all(self, half_bridges: int, stop: StopRule) -> None:
        """All half-bridges that are left, or those until something ends the run."""
        run, folder = self.run, self.folder
        with watch(folder is not None) as heard:
            if folder is not None:
                self.save()
                self.log = self.workers.once(
                    lambda: Log(folder.path, after=run.step, tensorboard=self.settings.tensorboard)
                )
                self.workers.once(lambda: write_file(folder.path / "monitors.csv", table(run.rows).encode()))
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
                finally:
                    if self.log is not None:
                        self.log.close()

    def half_bridge(self, heard: Heard) -> None:
        """The steps of a half-bridge that are left, and its kernels."""
        run, trainer, stop = self.run, self.run.begin(), False
        if trainer is not None:
            with training_mode(trainer.model, trainer.device):
                while trainer.step < self.settings.steps:
                    done = run.advance(Asked(heard.signal is not None, self.ended))
                    if done is None:
                        if run.trainer is not None:
                            self.save()
                        return
                    self.told(done)
                    stop, end = done.asked
                    if self.workers.count == 1:  # several agree in the next step
                        stop, end = heard.signal is not None, self.ended
                    if (stop or end) and trainer.step < self.settings.steps:
                        self.save()
                        if stop:
                            self.interrupt(heard)
                        run.stopped = "the callback"
                        return
        measured = run.finish(time.perf_counter() - self.started)
        if measured is not None:
            self.write(measured)
        if stop:
            self.interrupt(heard)
        if self.ended and run.stopped is None:
            run.stopped = "the callback"

    def told(self, done: Step) -> None:
        """Log, callback, progress and checkpoint of a step."""
        run, settings, trainer = self.run, self.settings, self.run.trainer
        assert trainer is not None
        recent = trainer.losses[max(0, trainer.step - SMOOTHED) : trainer.step].mean().item()
        seconds = time.perf_counter() - self.started
        row = Row(run.step, done.loss, recent, done.gradient_norm, done.lr, seconds, run.step * settings.batch_size)
        last = trainer.step == settings.steps
        if self.log is not None and (last or run.step % settings.log_every == 0):
            self.log.row(row)
        if self.callback is not None:
            half = trainer.half
            state = BridgeState(half.index, half.direction.value, *row[:6], list(run.rows))
            try:
                self.ended = self.callback(state) is True or self.ended
            except BaseException as error:
                if self.folder is not None and self.workers.first and not last:
                    self.folder.write(run.state(), run.step)
                    error.add_note(f"the run is saved in {self.folder.path}, at step {run.step}")
                raise
            trainer.model.train()  # whatever mode it was put in to be looked at
        self.bar.update()
        if not self.bar.disable:
            self.bar.set_description(
                f"half-bridge {trainer.half.index + 1}, {trainer.half.direction.value}", refresh=False
            )
            self.bar.set_postfix(loss=f"{recent:.4g}", refresh=False)
        if self.folder is not None and not last and settings.save_every and run.step % settings.save_every == 0:
            self.save()

    def interrupt(self, heard: Heard) -> None:
        """Raise Interrupted; all is saved."""
        if self.folder is None:
            return
        name = "a signal" if heard.signal is None else heard.signal.name
        raise Interrupted(
            f"stopped by {name} after step {self.run.step}; the run is saved in {self.folder.path}: resume it to go on"
        )

    def write(self, measured: Monitored) -> None:
        """The lines, pictures and checkpoint of an iterate."""
        if self.folder is None:
            return
        path, run = self.folder.path, self.run

        def act() -> None:
            write_file(path / "monitors.csv", table(run.rows).encode())
            if self.plots:
                plot_monitors(run.rows, run.losses, path / "monitors.png", run.monitors.floors())
                way = Direction(measured.row.direction)
                name = f"{measured.row.iterate:03d}-{way.value}.png"
                plot_samples(measured.samples, run.monitors.law_at_the_end(way), path / "samples" / name)

        self.workers.once(act)
        self.save()

    def save(self) -> None:
        """A checkpoint, where there is a folder."""
        folder, run = self.folder, self.run
        if folder is None:
            return

        def act() -> None:
            if self.log is not None:
                self.log.sync()
            folder.write(run.state(), run.step)

        self.workers.once(act)

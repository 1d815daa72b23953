"""The training loop: steps, log, checkpoints, pictures, and how it ends."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from tqdm.auto import tqdm

from halfbridge.training.folder import RunFolder
from halfbridge.training.interrupts import Asked, Interrupted
from halfbridge.training.log import SMOOTHED, Log, Row
from halfbridge.training.previews import preview
from halfbridge.training.trainer import NotFinite, Step, Trainer

__all__ = ["TrainingState", "run"]

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True)
class TrainingState(Generic[Module]):
    """What a callback is told after each step. The networks are those in training: look, do not keep."""

    step: int
    """Steps done."""
    loss: float
    """Mean loss of the step's batch."""
    smoothed: float
    """Mean of the last 100 losses."""
    gradient_norm: float
    """Before clipping."""
    lr: float
    """Learning rate of the step."""
    examples: int
    """Examples seen."""
    seconds: float
    """Time in training."""
    net: Module = dataclasses.field(repr=False)
    """The network, in train mode."""
    average: Module = dataclasses.field(repr=False)
    """Its average of the first decay, in eval mode."""


def run(
    trainer: Trainer, folder: RunFolder | None, asked: Asked, progress: bool, callback: Callable[[Any], Any] | None
) -> None:
    """All steps that are left."""
    settings, workers = trainer.settings, trainer.workers
    log = None if folder is None else workers.once(lambda: _begin(trainer, folder))
    before, started = (0.0 if log is None else log.seconds), time.perf_counter()
    bar = tqdm(
        total=settings.steps,
        initial=trainer.step,
        desc="training",
        unit="step",
        disable=not (progress and workers.first),
    )
    try:
        while trainer.step < settings.steps:
            done = _advance(trainer, folder, asked)
            step, last = trainer.step, trainer.step == settings.steps
            row = _row(trainer, done, before + time.perf_counter() - started)
            if log is not None and (last or step % settings.log_every == 0):
                log.row(row)
            bar.update()
            if not bar.disable:
                rate = bar.format_dict["rate"] or 0.0
                speed = f"{rate * settings.batch_size:.3g}/s"
                bar.set_postfix(loss=f"{row.smoothed:.4g}", examples=speed, refresh=False)
            if callback is not None:
                callback(TrainingState(**row._asdict(), net=trainer.net, average=trainer.averaged()[0]))
            stop = done.stop or (workers.count == 1 and asked.signal is not None)  # several agree in the next step
            if folder is not None:
                if settings.sample_every and (last or step % settings.sample_every == 0):
                    preview(trainer, folder.path / "samples", log)
                if last or stop or (settings.save_every and step % settings.save_every == 0):
                    _save(trainer, folder, log)
                if stop:
                    raise Interrupted(
                        f"stopped by {'a signal' if asked.signal is None else asked.signal.name} after step {step} of "
                        f"{settings.steps}; the run is saved in {folder.path}: resume it to go on"
                    )
    finally:
        bar.close()
        if log is not None:
            log.close()


def _begin(trainer: Trainer, folder: RunFolder) -> Log:
    """The log of a run whose state has a checkpoint, also the first one."""
    folder.save(trainer)
    return Log(folder.path, after=trainer.step, tensorboard=trainer.settings.tensorboard)


def _advance(trainer: Trainer, folder: RunFolder | None, asked: Asked) -> Step:
    try:
        return trainer.advance(stop=asked.signal is not None)
    except NotFinite as error:
        if folder is None:
            raise
        trainer.workers.once(lambda: folder.save(trainer))
        raise NotFinite(
            f"{error}. The network before that step is saved in {folder.path}; resuming unchanged would end here again"
        ) from None


def _save(trainer: Trainer, folder: RunFolder, log: Log | None) -> None:
    def act() -> None:
        if log is not None:
            log.sync()
        folder.save(trainer)

    trainer.workers.once(act)


def _row(trainer: Trainer, done: Step, seconds: float) -> Row:
    recent = trainer.losses[max(0, trainer.step - SMOOTHED) : trainer.step]
    return Row(
        trainer.step,
        done.loss,
        recent.mean().item(),
        done.gradient_norm,
        done.lr,
        seconds,
        trainer.step * trainer.settings.batch_size,
    )

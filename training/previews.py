"""Samples of a network in training, drawn by its average."""

from __future__ import annotations

from pathlib import Path

import torch

from halfbridge.solvers import names
from halfbridge.solvers.field import Field
from halfbridge.training import pictures
from halfbridge.training.log import Log
from halfbridge.training.sampling import sample_rows
from halfbridge.training.trainer import Trainer

__all__ = ["preview"]


def preview(trainer: Trainer, folder: Path, log: Log | None) -> None:
    """Draw settings.sample_count samples by the first average to folder/step-*.png; always the same starts and noise.

    Sample i of a network with classes is of class i mod the number of them: of images, a column is a class.
    """
    settings, (net, objective) = trainer.settings, trainer.averaged()
    known = int(getattr(trainer.net, "classes", 0) or 0)

    def field(start: int, stop: int) -> Field:
        options = {"classes": torch.arange(start, stop, device=trainer.device) % known} if known else {}
        made: Field = objective.field(net, **options)
        return made

    data = trainer.data
    samples = sample_rows(
        field,
        names.solver(settings.sample_solver),
        grid=names.grid(settings.sample_grid)(objective.process, settings.sample_steps),
        n=settings.sample_count,
        shape=data.shape[1:],
        seed=settings.seed,
        workers=trainer.workers,
        dtype=data.dtype,
        device=trainer.device,
        check_finite=False,
    )

    def act() -> None:
        low, high = (end.item() for end in data.aminmax())
        path = folder / f"step-{trainer.step:09d}.png"
        columns = known if 1 < known <= 20 else None
        pixels = pictures.draw(samples, path, data=data, range=(low, high), columns=columns)
        if log is not None:
            log.picture("samples", pixels, trainer.step)

    trainer.workers.once(act)

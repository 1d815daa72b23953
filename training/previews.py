"""Samples of a network in training, drawn by its average."""

from __future__ import annotations

from pathlib import Path

import torch

from halfbridge.solvers import names
from halfbridge.solvers.field import Field
from halfbridge.training import pictures
from halfbridge.training.arguments import class_count
from halfbridge.training.log import Log
from halfbridge.training.modes import training_mode
from halfbridge.training.sampling import sample_rows
from halfbridge.training.trainer import Trainer

__all__ = ["preview", "rehearse"]


def preview(trainer: Trainer, folder: Path, log: Log | None) -> None:
    """Draw settings.sample_count samples by the first average to folder/step-*.png; always the same starts and noise.

    Sample i of a network with classes is of class i mod the number of them: of images, a column is a class.
    """
    data, known = trainer.data, class_count(trainer.net) or 0
    samples = _samples(trainer, trainer.settings.sample_count)

    def act() -> None:
        low, high = (end.item() for end in data.aminmax())
        path = folder / f"step-{trainer.step:09d}.png"
        columns = known if 1 < known <= 20 else None
        pixels = pictures.draw(samples, path, data=data, range=(low, high), columns=columns)
        if log is not None:
            log.picture("samples", pixels, trainer.step)

    trainer.workers.once(act)


def rehearse(trainer: Trainer) -> None:
    """Draw one sample and look for what pictures need, before any step is taken. ImportError, naming the extra; ValueError
    for a solver or times that do not go with the process."""
    with training_mode(trainer.model, trainer.device):
        trainer.workers.once(lambda: pictures.check(trainer.data.shape[1:]))
        try:
            _samples(trainer, 1)
        except Exception as error:
            settings = trainer.settings
            raise ValueError(
                f"sample_solver = {settings.sample_solver!r}, sample_grid = {settings.sample_grid!r} cannot draw samples: "
                f"{error}; pass others, or sample_every=0 for no pictures"
            ) from error


def _samples(trainer: Trainer, n: int) -> torch.Tensor:
    settings, (net, objective) = trainer.settings, trainer.averaged()
    known = class_count(trainer.net) or 0

    def field(start: int, stop: int) -> Field:
        options = {"classes": torch.arange(start, stop, device=trainer.device) % known} if known else {}
        made: Field = objective.field(net, **options)
        return made

    return sample_rows(
        field,
        names.solver(settings.sample_solver),
        grid=names.grid(settings.sample_grid)(objective.process, settings.sample_steps),
        n=n,
        shape=trainer.data.shape[1:],
        seed=settings.seed,
        workers=trainer.workers,
        dtype=trainer.data.dtype,
        device=trainer.device,
        check_finite=False,
    )

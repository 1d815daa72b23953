"""A run's folder: what is trained (config.json), its checkpoints, its log, its pictures; begun once, and gone on from.

config.json         what the run was called with, and the versions of what ran it
checkpoints/        see `checkpoint`
log.csv             see `log`
tensorboard/        where settings.tensorboard asks for it
samples/            step-*.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from halfbridge.training import checkpoint, jsontext, states
from halfbridge.training.durable import PARTIAL, write_file
from halfbridge.training.runs import check_same_run, check_untouched, read_config
from halfbridge.training.trainer import Trainer

__all__ = ["Resume", "RunFolder", "check_free"]

Resume = bool | Literal["auto"]


def check_free(path: Path, resume: Resume) -> bool:
    """Whether the folder holds a run. FileExistsError or FileNotFoundError, as `RunFolder.open` says."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise FileExistsError(
            f"out = {str(path)!r} is no run's folder: {above} is a file; pass one that is new or empty"
        )
    began = (path / "config.json").exists()
    if path.exists() and not began and not _is_empty(path):
        raise FileExistsError(f"out = {str(path)!r} exists and is no run's folder; pass one that is new or empty")
    if began and resume is False:
        raise FileExistsError(f"out = {str(path)!r} holds a run already; resume it, or pass another folder")
    if not began and resume is True:
        raise FileNotFoundError(
            f"out = {str(path)!r} holds no run to resume; resume 'auto' begins one where there is none"
        )
    return began


def _is_empty(path: Path) -> bool:
    """Whether nothing is there but what a process leaves that is killed while it begins."""
    return path.is_dir() and all(inner.suffix == PARTIAL for inner in path.iterdir())


class RunFolder:
    """The folder `path` of the run that `config` describes: {"net", "objective", "process", "data", "settings", ...}."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self.checkpoints = path / "checkpoints"

    def open(self, resume: Resume) -> int | None:
        """Begin the run, or find where to go on: the step of the newest checkpoint, None from the beginning.

        A folder with nothing in it is begun by False and "auto", one with a run is gone on from by True and "auto", also one
        that was killed before its first checkpoint. FileExistsError or FileNotFoundError otherwise; ValueError for a run
        that another config began, that is damaged, or whose config.json was changed.
        """
        began = check_free(self.path, resume)
        at = max(checkpoint.steps(self.checkpoints), default=None)
        if began:
            old = (
                read_config(self.path)
                if at is None
                else check_untouched(self.path, checkpoint.read(self.checkpoints, at))
            )
            check_same_run(old, self.config, f"the run in {self.path}")
        if at is not None and at > self.config["settings"]["steps"]:
            raise ValueError(
                f"steps = {self.config['settings']['steps']}, but the run in {self.path} is at step {at}; pass more, or "
                "another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / "config.json", (jsontext.dumps(self.config, "config", indent=2) + "\n").encode())
        return at

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint, unless there is one of this step."""
        if trainer.step in checkpoint.steps(self.checkpoints):
            return
        tensors, record = states.flatten(trainer.state())
        keep = trainer.settings.keep
        checkpoint.write(
            self.checkpoints, tensors, {"config": self.config, "state": record}, step=trainer.step, keep=keep
        )

    def load(self, trainer: Trainer, step: int) -> None:
        """Read the checkpoint of `step` into the trainer. CheckpointError, a ValueError, for a damaged one."""
        tensors, record, step = checkpoint.read(self.checkpoints, step)
        state = states.unflatten(tensors, record["state"])
        _check_architecture(state["model"], trainer.model.state_dict(), self.path)
        trainer.load(state, step)


def _check_architecture(saved: dict[str, torch.Tensor], here: dict[str, torch.Tensor], folder: Path) -> None:
    """ValueError, naming the first tensor that differs, unless the network of the run has these names, shapes and dtypes."""
    for name in {**saved, **here}:
        was, now = (
            f"{str(t.dtype)[6:]} {tuple(t.shape)}" if t is not None else "absent"
            for t in (saved.get(name), here.get(name))
        )
        if was != now:
            raise ValueError(
                f"the run in {folder} is of another network: {name.removeprefix('net.')} is {was} there and {now} in the "
                "one given; pass the network that it was begun with"
            )

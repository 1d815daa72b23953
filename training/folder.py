"""A run's folder: what is trained (config.json), its checkpoints, its log, its pictures; begun once, and gone on from.

config.json         what the run was called with, and the versions of what ran it
checkpoints/        see `checkpoint`
log.csv             see `log`
tensorboard/        where settings.tensorboard asks for it
samples/            step-*.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from halfbridge.training import checkpoint, states
from halfbridge.training.durable import write_file
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import Trainer

__all__ = ["Resume", "RunFolder"]

Resume = bool | Literal["auto"]

PARTS = ("net", "objective", "process", "data")


class RunFolder:
    """The folder `path` of the run that `config` describes: {"net", "objective", "process", "data", "settings", ...}."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self.checkpoints = path / "checkpoints"

    def open(self, resume: Resume) -> int | None:
        """Begin the run, or find where to go on: the step of the newest checkpoint, None from the beginning.

        A folder with nothing in it is begun by False and "auto", one with a run is gone on from by True and "auto", also one
        that was killed before its first checkpoint. FileExistsError or FileNotFoundError otherwise; ValueError for a run
        that another config began.
        """
        began = (self.path / "config.json").exists()
        if self.path.exists() and (not self.path.is_dir() or (not began and any(self.path.iterdir()))):
            raise FileExistsError(
                f"out = {str(self.path)!r} exists and is no run's folder; pass one that is new or empty"
            )
        if began and resume is False:
            raise FileExistsError(
                f"out = {str(self.path)!r} holds a run already; pass resume=True to go on with it, or another folder"
            )
        if not began and resume is True:
            raise FileNotFoundError(
                f"out = {str(self.path)!r} holds no run to resume; pass resume='auto' to begin one where there is none"
            )
        if began:
            self._compare(json.loads((self.path / "config.json").read_text(encoding="utf-8")))
        at = max(checkpoint.steps(self.checkpoints), default=None)
        if at is not None and at > self.config["settings"]["steps"]:
            raise ValueError(
                f"steps = {self.config['settings']['steps']}, but the run in {self.path} is at step {at}; pass more, or "
                "another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / "config.json", (json.dumps(self.config, indent=2, allow_nan=False) + "\n").encode())
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
        trainer.load(states.unflatten(tensors, record["state"]), step)

    def _compare(self, old: dict[str, Any]) -> None:
        """ValueError, naming what differs, unless the run that is there is this one."""
        new = self.config
        before, now = Settings.load(old["settings"]), Settings.load(new["settings"])
        pairs = [(part, old[part], new[part]) for part in PARTS]
        pairs += [("settings", before.fixed(), now.fixed())] if before.schedule == now.schedule else []
        pairs += [("schedule", before.schedule, now.schedule)]
        for name, one, other in pairs:
            if found := _difference(name, one, other):
                key, was, would = found
                raise ValueError(
                    f"out = {str(self.path)!r} holds a run with {key.removeprefix('settings.')} = {was!r}, not {would!r}; pass "
                    "what it began with to resume it, or another folder" + _why(key)
                )


def _why(key: str) -> str:
    return " (the cosine schedule ends at the last step)" if key == "settings.steps" else ""


def _difference(key: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ, and both values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if found := _difference(f"{key}.{name}", old.get(name), new.get(name)):
                return found
        return None
    return None if old == new else (key, old, new)

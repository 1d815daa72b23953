"""A run's folder: what is trained (config.json), its checkpoints, its log, its pictures; begun once, and gone on from.

config.json         what the run was called with, the versions of what began it, and of what went on with it if others
checkpoints/        see `checkpoint`
log.csv             see `log`
tensorboard/        where settings.tensorboard asks for it
samples/            step-*.png
.lock               held by the process that trains
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from halfbridge.training import checkpoint, jsontext, recipe, states
from halfbridge.training.durable import PARTIAL, write_file
from halfbridge.training.runs import SCORES, RunKind, check_same_run, check_untouched
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import Trainer
from halfbridge.training.workers import Workers

__all__ = ["Resume", "RunFolder", "Saveable", "check_free", "open_in_all", "saved_if_it_fails"]

Resume = bool | Literal["auto"]
LOCK = ".lock"
NOTHING = (LOCK, ".DS_Store")
"""Names of files that make a folder no less empty."""


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
    return path.is_dir() and all(inner.suffix == PARTIAL or inner.name in NOTHING for inner in path.iterdir())


class Saveable(Protocol):
    """What a checkpoint is written of: a `Trainer`, or a bridge's run."""

    @property
    def step(self) -> int: ...

    @property
    def settings(self) -> Settings: ...

    def state(self) -> dict[str, Any]: ...


class RunFolder:
    """The folder `path` of the run that `config` describes: {"net", "objective", "process", "data", "settings", ...}; a run of
    another `kind` has others."""

    def __init__(self, path: Path, config: dict[str, Any], kind: RunKind = SCORES) -> None:
        self.path, self.config, self.kind = path, config, kind
        self.checkpoints = path / "checkpoints"
        self._lock: IO[str] | None = None

    def open(self, resume: Resume) -> int | None:
        """Begin the run, or find where to go on: the step of the newest checkpoint, None from the beginning.

        A folder with nothing in it is begun by False and "auto", one with a run is gone on from by True and "auto", also one
        that was killed before its first checkpoint. FileExistsError or FileNotFoundError otherwise; ValueError for a run
        that another config began, that is damaged, or whose config.json was changed; BlockingIOError for a run that another
        process, or thread, trains: the folder is locked until `close`, or until the process ends in whatever way. Warns where
        other versions began the run.
        """
        check_free(self.path, resume)
        self.path.mkdir(parents=True, exist_ok=True)
        self._take()
        written: dict[str, Any] = {}
        began = check_free(self.path, resume)  # again: it may have been begun since
        at = max(checkpoint.steps(self.checkpoints), default=None)
        if began:
            written, old = self._began_as(at)
            check_same_run(old, self.config, f"the run in {self.path}", self.kind)
        if at is not None:
            self._check_length(at)
        self._keep_versions(written, at)
        write_file(self.path / "config.json", (jsontext.dumps(self.config, "config", indent=2) + "\n").encode())
        return at

    def _began_as(self, at: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What config.json says, and the config that the checkpoint of step `at` was written with. ValueError if they differ."""
        written = self.kind.read(self.path)
        if at is None:
            return written, written
        return written, check_untouched(self.path, checkpoint.read(self.checkpoints, at), self.kind)

    def _check_length(self, at: int) -> None:
        """ValueError where the run, at step `at`, is past the end that this call asks for."""
        if at > self.config["settings"]["steps"]:
            raise ValueError(
                f"steps = {self.config['settings']['steps']}, but the run in {self.path} is at step {at}; pass more, or "
                "another folder"
            )

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # a full disk again
                self._lock.close()
            self._lock = None

    def _take(self) -> None:
        """Lock the folder, where the system and the file system have such a lock."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self._lock = (self.path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self.close()
            raise BlockingIOError(
                f"out = {str(self.path)!r} is in use by {holder}; wait until that ends, or pass another folder"
            ) from None
        except OSError:  # a file system without locks
            return
        with contextlib.suppress(OSError):  # a full disk: it is locked all the same
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._lock.flush()

    def _keep_versions(self, old: dict[str, Any], at: int | None) -> None:
        """Keep what began the run as "versions", and under "resumed" what went on with it, where that was another."""
        resumed = old.get("resumed", [])
        last = resumed[-1]["versions"] if resumed else old.get("versions")
        changed = None if last is None else recipe.version_changes(last)
        if changed:
            warnings.warn(f"the run in {self.path}: {changed}", stacklevel=2)
            resumed = [*resumed, {"step": at or 0, "versions": recipe.versions()}]
        self.config |= {"versions": old.get("versions", self.config["versions"])}
        if resumed:
            self.config["resumed"] = resumed

    def save(self, run: Saveable, *, beside: int = 0, again: bool = False) -> None:
        """Write a checkpoint, unless there is one of this step (again: in its place); keep `beside` more than settings say."""
        if run.step in checkpoint.steps(self.checkpoints) and not again:
            return
        tensors, record = states.flatten(run.state())
        keep = run.settings.keep + beside
        checkpoint.write(self.checkpoints, tensors, {"config": self.config, "state": record}, step=run.step, keep=keep)

    def load(self, trainer: Trainer, step: int) -> None:
        """Read the checkpoint of `step` into the trainer. CheckpointError, a ValueError, for a damaged one."""
        tensors, record, step = checkpoint.read(self.checkpoints, step)
        state = states.unflatten(tensors, record["state"])
        for name, module in trainer.model.items():
            there = {k.removeprefix(f"{name}."): v for k, v in state["model"].items() if k.startswith(f"{name}.")}
            states.check_same_tensors(there, module, f"the run in {self.path}", name)
        trainer.load(state, step)


@contextlib.contextmanager
def saved_if_it_fails(run: Saveable, folder: RunFolder | None, workers: Workers) -> Iterator[None]:
    """A callback, a picture or a line of the log that fails costs no step: the state is saved, then the error raised. It may
    have failed in this process alone, so nothing is exchanged."""
    try:
        yield
    except BaseException as error:
        if folder is not None and workers.first:
            try:
                folder.save(run)
                error.add_note(f"the run is saved in {folder.path}, at step {run.step}")
            except Exception as another:
                error.add_note(f"and the run could not be saved at step {run.step}: {another}")
        raise


def open_in_all(folder: RunFolder, resume: Resume, workers: Workers) -> int | None:
    """`RunFolder.open` in process 0; the step to go on from, in all of them."""
    return workers.tell(workers.once(lambda: folder.open(resume)))

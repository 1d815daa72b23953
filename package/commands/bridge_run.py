"""A bridge's run as the commands that use one take it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfbridge.commands.bridge_table import one_line_warnings
from halfbridge.commands.unseen import unseen
from halfbridge.training import checkpoint, recipe
from halfbridge.training.bridge import Bridge, End, Examples, Normal, load_bridge
from halfbridge.training.bridge.bridge_folder import read_bridge_config

__all__ = ["BridgeRun", "introduce", "is_bridge", "load", "refuse"]


class BridgeRun(NamedTuple):
    """The newest iterate of a run, and what the run was called with."""

    folder: str
    bridge: Bridge
    config: dict[str, Any]
    step: int
    """Over all half-bridges."""
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        return tuple(self.config["start"]["shape"])

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks and states."""
        found: torch.dtype = getattr(torch, str(self.config["start"]["dtype"]))
        return found

    def law(self, end: str, seed: int) -> tuple[End, str]:
        """The law at that end ("start" or "end"), and what its samples are: see `unseen`. ValueError where that is not known."""
        described = self.config[end]
        if described["type"] == "Normal":
            law = Normal(self.shape, described["std"], self.dtype, self.device, described["mean"])
            return law, "a normal law"
        config = (self.config.get("data") or {}).get(end)
        if config is None:
            raise ValueError(
                f"{self.folder} does not say what its {end} was loaded from; pass states of yours: halfbridge translate "
                f"{self.folder} --input FILE"
            )
        data, what = unseen(config, seed)
        return Examples(data.examples.to(self.device, self.dtype)), f"{data.name}, {what}"


def is_bridge(run: str) -> bool:
    """Whether it is the folder of a run of train bridge."""
    path = Path(run) / "config.json"
    return path.is_file() and "forward_net" in recipe.read(path)


def load(run: str, device: torch.device) -> BridgeRun:
    """The run's newest iterate on the device. ValueError or FileNotFoundError for what is no bridge's run."""
    folder = Path(run)
    if not is_bridge(run) and (folder.is_file() or (folder / "config.json").is_file()):
        raise ValueError(f"{run} is a run of train sgm, which has one end; pass it to halfbridge sample")
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {run} ({folder.resolve()})")
    with one_line_warnings():
        bridge = load_bridge(folder, device=device)
    step = max(checkpoint.steps(folder / "checkpoints"))
    return BridgeRun(run, bridge, read_bridge_config(folder), step, device)


def introduce(say: Callable[[str], None], run: BridgeRun) -> None:
    steps = run.config["settings"]["steps"]
    done, more = divmod(run.step, steps)
    training = f" and {more} steps" if more else ""
    chain = run.bridge.reference
    net = run.config["forward_net"]["type"]
    say(f"{run.folder}: bridge of two {net}s, {done} half-bridges{training}; {chain.process!r} in {chain.steps} steps")


def refuse(options: argparse.Namespace, why: str, *names: str) -> None:
    """ValueError for the first of the options that was given."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value != options.parser.get_default(name):
            shown = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise ValueError(f"{shown}: {options.folder} is {why}; leave it out")

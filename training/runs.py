"""What a run is called with, as JSON values: enough to tell whether a call goes on with it, and to build it again.

It is in config.json, to be read by people, and in each checkpoint, where a SHA-256 covers it: that one is gone by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfbridge.training import checkpoint, recipe
from halfbridge.training.arguments import Examples
from halfbridge.training.data import Dataset
from halfbridge.training.objectives import Objective
from halfbridge.training.settings import Settings

__all__ = ["SCORES", "RunKind", "check_same_run", "check_settings", "check_untouched", "describe_run", "read_config"]

CALLED = ("net", "objective", "process", "predicts", "labels", "examples")
Config = dict[str, Any]


class RunKind(NamedTuple):
    """Whose runs: what their configs have."""

    read: Callable[[Path], Config]
    """The config.json in a folder. FileNotFoundError where there is none, ValueError for what is no config of such a run."""
    trained: Callable[[Config, Config], tuple[Config, Config]]
    """The parts of two configs that say what is trained, which a call must agree in to go on."""


def describe_run(
    net: torch.nn.Module,
    objective: Objective,
    data: torch.Tensor | Dataset,
    examples: Examples,
    settings: Settings,
) -> dict[str, Any]:
    """`recipe.describe`, the data's config (None for a user's tensors) and digest, whether the network sees examples of no
    class, the settings, and the versions."""
    known = isinstance(data, Dataset) and data.config is not None
    return {
        **recipe.describe(net, objective=objective),
        "data": dict(data.config) if known else None,  # type: ignore[union-attr, arg-type]
        "examples": {
            "dtype": str(examples.values.dtype)[6:],
            "shape": list(examples.values.shape),
            "sha256": _digest(examples.values),
            "classes": None if examples.classes is None else _digest(examples.classes),
            **({} if examples.bins is None else {"dequantised": "anew"}),
        },
        "no_class": examples.classes is not None
        and (settings.class_dropout > 0.0 or bool((examples.classes < 0).any())),
        "settings": settings.config,
        "versions": recipe.versions(),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run. FileNotFoundError where there is none, ValueError for what is no run's config."""
    config = recipe.read(folder / "config.json")
    if "forward_net" in config:
        raise ValueError(f"the run in {folder} is not of fit_score, but of fit_bridge (halfbridge train bridge)")
    kinds = {"net": dict, "objective": dict | None, "process": dict | None, "predicts": str, "settings": dict}
    for key, kind in kinds.items():
        if not isinstance(config.get(key, ...), kind):
            raise ValueError(
                f"{folder / 'config.json'} is no run's config: it has {key} = {config.get(key)!r}; restore it"
            )
    check_settings(config["settings"], folder)
    return config


def check_settings(settings: dict[str, Any], folder: Path) -> None:
    """ValueError unless they are those of a run's config.json."""
    try:
        Settings.load(settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is no run's config: {error}; restore it") from error


def _trained(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    before, now = (
        {name: config.get(name) for name in CALLED} | {"settings": Settings.load(config["settings"]).fixed()}
        for config in (old, new)
    )
    for one, other in ((before, now), (now, before)):
        if one["settings"]["schedule"] != other["settings"]["schedule"]:
            one["settings"].pop("steps", None)  # say what is wrong, not what follows from it
    return before, now


SCORES = RunKind(read_config, _trained)
"""Runs of `fit_score`."""


def check_untouched(folder: Path, saved: checkpoint.Checkpoint, kind: RunKind = SCORES) -> dict[str, Any]:
    """The config that a checkpoint was written with. ValueError, naming entries and both values, if the folder's config.json
    is of another run."""
    path, config = folder / "config.json", saved.record.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"the checkpoint of step {saved.step} in {folder} is of no run: it has no config")
    what = f"{path} is not what the checkpoint of step {saved.step} was trained with: it"
    recipe.check_same(*kind.trained(config, kind.read(folder)), what, f"restore {path}")
    return config


def check_same_run(old: dict[str, Any], new: dict[str, Any], what: str, kind: RunKind = SCORES) -> None:
    """ValueError, naming entries and both values, unless `new` goes on with the run that `old` began: what is trained is the
    same. Versions may differ, and what `Settings.fixed` leaves free.
    """
    recipe.check_same(*kind.trained(old, new), what)


def _digest(tensor: torch.Tensor) -> str:
    """Of the values, bit for bit."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()

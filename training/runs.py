"""What a run is called with, as JSON values: enough to tell whether a call goes on with it, and to build it again."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from halfbridge.training import recipe
from halfbridge.training.data import Dataset
from halfbridge.training.objectives import Objective
from halfbridge.training.settings import Settings

__all__ = ["check_same_run", "describe_run"]

CALLED = ("net", "objective", "process", "predicts", "labels", "examples")


def describe_run(
    net: torch.nn.Module,
    objective: Objective,
    data: torch.Tensor | Dataset,
    examples: torch.Tensor,
    classes: torch.Tensor | None,
    settings: Settings,
) -> dict[str, Any]:
    """`recipe.describe`, the data's config (None for a user's tensors) and digest, the settings, and the versions."""
    known = isinstance(data, Dataset) and data.config is not None
    return {
        **recipe.describe(net, objective=objective),
        "data": dict(data.config) if known else None,  # type: ignore[union-attr, arg-type]
        "examples": {
            "dtype": str(examples.dtype)[6:],
            "shape": list(examples.shape),
            "sha256": _digest(examples),
            "classes": None if classes is None else _digest(classes),
        },
        "settings": settings.config,
        "versions": recipe.versions(),
    }


def check_same_run(old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    """ValueError, naming entries and both values, unless `new` goes on with the run that `old` began: what is trained is the
    same. Versions may differ, and what `Settings.fixed` leaves free.
    """
    before, now = (
        {name: config.get(name) for name in CALLED} | {"settings": Settings.load(config["settings"]).fixed()}
        for config in (old, new)
    )
    for one, other in ((before, now), (now, before)):
        if one["settings"]["schedule"] != other["settings"]["schedule"]:
            one["settings"].pop("steps", None)  # say what is wrong, not what follows from it
    recipe.check_same(before, now, what)


def _digest(tensor: torch.Tensor) -> str:
    """Of the values, bit for bit."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()

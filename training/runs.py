"""What a run is called with, as JSON values: enough to tell whether a call goes on with it, and to build it again."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from halfbridge.nets import build
from halfbridge.solvers.processes import described
from halfbridge.training.data import Dataset
from halfbridge.training.objectives import Objective
from halfbridge.training.settings import Settings

__all__ = ["describe_run"]


def describe_run(
    net: torch.nn.Module,
    objective: Objective,
    data: torch.Tensor | Dataset,
    examples: torch.Tensor,
    classes: torch.Tensor | None,
    settings: Settings,
) -> dict[str, Any]:
    """The config of a run. What cannot be written down (a user's network or function) leaves its type there, and the
    tensors of a network their shapes.
    """
    return {
        "net": _net(net),
        "objective": _written(objective),
        "process": _process(objective),
        "data": {
            "config": dict(data.config) if isinstance(data, Dataset) and data.config is not None else None,
            "shape": list(examples.shape),
            "sha256": _digest(examples),
            "classes": None if classes is None else _digest(classes),
        },
        "settings": settings.config,
    }


def _net(net: torch.nn.Module) -> dict[str, Any]:
    tensors = {name: [str(t.dtype)[6:], *t.shape] for name, t in net.state_dict().items()}
    try:
        return {"description": build.describe(net), "tensors": tensors}
    except ValueError:
        return {"description": {"type": f"{type(net).__module__}.{type(net).__qualname__}"}, "tensors": tensors}


def _written(objective: Objective) -> dict[str, Any]:
    try:
        return dict(objective.config)
    except ValueError:
        return {"type": f"{type(objective).__module__}.{type(objective).__qualname__}"}


def _process(objective: Objective) -> dict[str, Any]:
    try:
        return described.describe(objective.process)
    except ValueError:
        return {"type": type(objective.process).__name__}


def _digest(tensor: torch.Tensor) -> str:
    """Of the values, bit for bit."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()

"""Networks written down as JSON values and built from them again, untrained."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from halfbridge.solvers.nearest import nearest

__all__ = ["build", "describe"]

TYPES = {
    "MLP": "halfbridge.nets.mlp",
    "UNet": "halfbridge.nets.unet",
    "Precondition": "halfbridge.nets.precondition",
}


def describe(net: torch.nn.Module) -> dict[str, Any]:
    """{"type": the class's name, **net.config}: JSON values from which `build` makes an untrained equal of `net`.

    ValueError for a network that is not one of ours, or that holds what cannot be written down.
    """
    name = type(net).__name__
    if name not in TYPES or type(net) is not _type(name):
        raise ValueError(
            f"net is a {name}, which cannot be written down: {', '.join(TYPES)} can; build yours in your code and pass it "
            "when loading: net="
        )
    config: dict[str, Any] = net.config  # type: ignore[assignment]
    return {"type": name} | config


def build(description: Mapping[str, Any]) -> torch.nn.Module:
    """The untrained network that `describe` wrote: every parameter has its shape; an argument left out has its default.

    A description under "net" is built first. ValueError for a type or an argument that there is not, with the nearest
    name; values are checked by the network.
    """
    if not isinstance(description, Mapping):
        raise TypeError(f"description is a {type(description).__name__}; pass what `describe` returned, a dict")
    arguments = dict(description)
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in TYPES:
        raise ValueError(f"description has type = {name!r}, which is no network; {nearest(name, TYPES)}")
    kind = _type(name)
    parameters = inspect.signature(kind).parameters
    # A class that takes any keyword checks them itself.
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise ValueError(f"{name} has no argument {key!r}; {nearest(key, parameters)}")
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and key not in arguments:
            raise ValueError(f"description of {name} lacks {key!r}, which has no default")
    if isinstance(arguments.get("net"), Mapping):
        arguments["net"] = build(arguments["net"])
    net: torch.nn.Module = kind(**arguments)
    return net


def _type(name: str) -> type[Any]:
    kind: type[Any] = getattr(importlib.import_module(TYPES[name]), name)
    return kind

"""The command that wrote a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["command"]


def command(script: str, results: Mapping[str, Any], full: Any, quick: Any, *options: str) -> str:
    """What to type for these results: --quick where the settings are not those of `full`, and the options whose values are not
    their defaults, which are 0 for the seed, 1 for threads and for others the settings'."""
    told = {**results, **results["settings"]}
    short = any(told[name] != value for name, value in _read(full).items() if name not in options)
    usual = {"seed": 0, "threads": 1, **_read(quick if short else full)}
    typed = [f"--{name} {told[name]}" for name in options if told[name] != usual[name]]
    return " ".join([f"python examples/{script}", *["--quick"] * short, *typed])


def _read(settings: Any) -> dict[str, Any]:
    """As results.json has them."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return values

"""Objectives: losses with all their choices made, as a trainer minimises and a run's config names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes import Process
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.objectives.base import Objective
from halfbridge.training.objectives.chains import DDPM, DDPMBound, Hybrid
from halfbridge.training.objectives.denoising import Denoising
from halfbridge.training.objectives.levels import NCSN, EDMDenoising
from halfbridge.training.objectives.score import HighOrder, Implicit, Sliced
from halfbridge.training.objectives.variational import VDM, VDMDiscrete

__all__ = [
    "DDPM",
    "NAMES",
    "NCSN",
    "VDM",
    "DDPMBound",
    "Denoising",
    "EDMDenoising",
    "HighOrder",
    "Hybrid",
    "Implicit",
    "Objective",
    "Sliced",
    "VDMDiscrete",
    "make",
]

NAMES: dict[str, Callable[..., Objective]] = {
    "denoising": Denoising,
    "ddpm": DDPM,
    "ddpm_elbo": DDPMBound,
    "hybrid": Hybrid,
    "vdm": VDM,
    "vdm_discrete": VDMDiscrete,
    "edm": EDMDenoising,
    "ncsn": NCSN,
    "implicit": Implicit,
    "sliced": Sliced,
    "high_order": HighOrder,
}
"""The objectives by name; each is called (process, **options)."""


def make(name: str, process: Process | None = None, **options: Any) -> Objective:
    """The objective of that name. `config` undoes it: make(config.pop("type"), process, **config) is an equal.

    process: may be left out for "edm" and "ncsn", which have one of their own, and must be for a "vdm" that learns its
    schedule. ValueError, with the nearest match, for a name that is not in NAMES or an option that it does not have.
    """
    check_choice("objective", name, NAMES)
    parameters = inspect.signature(NAMES[name]).parameters
    if process is None and parameters["process"].default is inspect.Parameter.empty:
        raise ValueError(f"objective {name!r} needs a process; pass one such as hb.VP()")
    known = [option for option in parameters if option != "process"]
    for option in options:
        if option not in known:
            raise ValueError(f"objective {name!r} has no option {option!r}; {nearest(option, known)}")
    return NAMES[name](**options) if process is None else NAMES[name](process, **options)

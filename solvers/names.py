"""Solvers, processes and grids written as text, see `calls`: `dpm3`, `DDIM(eta=0.5)`, `vp`, `karras(rho=5)`."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from halfbridge.solvers import processes
from halfbridge.solvers.ancestral import Ancestral, ReverseDiffusion
from halfbridge.solvers.calls import Call, bind, call, find
from halfbridge.solvers.ddim import DDIM
from halfbridge.solvers.dpm import DPMSolver, DPMSolverPP
from halfbridge.solvers.euler import EulerMaruyama
from halfbridge.solvers.grids import half_log_snr, karras, quadratic, uniform
from halfbridge.solvers.heun import Heun
from halfbridge.solvers.langevin import Langevin, PredictorCorrector
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes import Process
from halfbridge.solvers.solver import Solver

__all__ = ["GRIDS", "PROCESSES", "SOLVERS", "grid", "load_solver", "process", "solver"]

Makers = Mapping[str, Callable[..., Any]]


def _ddpm(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> processes.DiscreteVP:
    """Betas evenly spaced from `first` to `last` (Ho, Jain and Abbeel 2020)."""
    return processes.DiscreteVP([first + (last - first) * k / max(steps - 1, 1) for k in range(steps)])


SOLVERS: Makers = {
    "EulerMaruyama": EulerMaruyama,
    "ReverseDiffusion": ReverseDiffusion,
    "Ancestral": Ancestral,
    "DDIM": DDIM,
    "Heun": Heun,
    "DPMSolver": DPMSolver,
    "DPMSolverPP": DPMSolverPP,
    "Langevin": Langevin,
    "PredictorCorrector": PredictorCorrector,
    "dpm1": lambda: DPMSolver(order=1),
    "dpm2": lambda: DPMSolver(order=2),
    "dpm3": lambda: DPMSolver(order=3),
    "dpmpp": DPMSolverPP,
    "em": EulerMaruyama,
    "pc": lambda: PredictorCorrector(ReverseDiffusion(), Langevin()),
}
PROCESSES: Makers = {
    "VP": processes.VP,
    "CosineVP": processes.CosineVP,
    "SubVP": processes.SubVP,
    "VE": processes.VE,
    "EDM": processes.EDM,
    "OU": processes.OU,
    "Brownian": processes.Brownian,
    "DiscreteVP": processes.DiscreteVP,
    "ddpm": _ddpm,
}
GRIDS: Makers = {"uniform": uniform, "quadratic": quadratic, "half_log_snr": half_log_snr, "karras": karras}
OF_GRIDS = ("process", "n", "t_end")
"""Arguments of a grid that its text does not give."""


def solver(text: str) -> Solver:
    """The solver that `text` names. Raises ValueError, with the nearest name, if none is."""
    made: Solver = _make(call(text, "solver"), SOLVERS, "solver")
    return made


def process(text: str) -> Process:
    """The process that `text` names; `ddpm` is DiscreteVP with the 1000 linear betas. Raises ValueError as `solver`."""
    made: Process = _make(call(text, "process"), PROCESSES, "process")
    return made


def grid(text: str) -> Callable[..., Any]:
    """grid(process, n, t_end=None), from one of `halfbridge.grids`. Raises ValueError as `solver`."""
    given = call(text, "grid")
    maker = GRIDS[find(given.name, GRIDS, "grid")]
    return functools.partial(maker, **bind(maker, given, "grid", OF_GRIDS))


def load_solver(text: str) -> Solver:
    """A solver by name, or the class (or object) `module:Class` of a user's module on the path or in this folder."""
    module_name, colon, attribute = text.partition(":")
    if not colon:
        return solver(text)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = importlib.import_module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        public = [name for name in dir(module) if not name.startswith("__")]
        raise ValueError(f"module {module_name!r} has no {attribute!r}; {nearest(attribute, public)}")
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Solver):
        raise TypeError(f"{text} is a {type(made).__name__}, not a solver: derive it from halfbridge.Solver")
    return made


def _make(given: Call, makers: Makers, kind: str) -> Any:
    maker = makers[find(given.name, makers, kind)]
    return maker(**bind(maker, given, kind, make=lambda inner: _make(inner, makers, kind)))

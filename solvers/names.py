"""Solvers, processes and grids written as text: `dpm3`, `DDIM(eta=0.5)`, `vp`, `karras(rho=5)`.

A name is looked up without regard to case, "-" or "_"; arguments are Python literals, or such names again.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from halfbridge.solvers import processes
from halfbridge.solvers.ancestral import Ancestral, ReverseDiffusion
from halfbridge.solvers.ddim import DDIM
from halfbridge.solvers.dpm import DPMSolver, DPMSolverPP
from halfbridge.solvers.euler import EulerMaruyama
from halfbridge.solvers.grids import half_log_snr, karras, quadratic, uniform
from halfbridge.solvers.heun import Heun
from halfbridge.solvers.langevin import Langevin, PredictorCorrector
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
GRIDS: Makers = {
    "uniform": functools.partial(functools.partial, uniform),
    "quadratic": functools.partial(functools.partial, quadratic),
    "half_log_snr": functools.partial(functools.partial, half_log_snr),
    "karras": functools.partial(functools.partial, karras),
}


def solver(text: str) -> Solver:
    """The solver that `text` names. Raises ValueError, with the nearest name, if none is."""
    made: Solver = _make(text, SOLVERS, "solver")
    return made


def process(text: str) -> Process:
    """The process that `text` names; `ddpm` is DiscreteVP with the 1000 linear betas. Raises ValueError as `solver`."""
    made: Process = _make(text, PROCESSES, "process")
    return made


def grid(text: str) -> Callable[..., Any]:
    """grid(process, n, t_end=None), from one of `halfbridge.grids`. Raises ValueError as `solver`."""
    made: Callable[..., Any] = _make(text, GRIDS, "grid")
    return made


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
        raise ValueError(f"module {module_name!r} has no {attribute!r}{_hint(attribute, dir(module))}")
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Solver):
        raise TypeError(f"{text} is a {type(made).__name__}, not a solver: derive it from halfbridge.Solver")
    return made


def _make(text: str, makers: Makers, kind: str) -> Any:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        tree = None
    named = tree.func if isinstance(tree, ast.Call) else tree
    if not isinstance(named, ast.Name):
        # names with dashes, and what is no name at all
        return _find(text, makers, kind)()
    maker = _find(named.id, makers, kind)
    if not isinstance(tree, ast.Call):
        return maker()
    return maker(
        *(_value(argument, makers, kind) for argument in tree.args),
        **{str(keyword.arg): _value(keyword.value, makers, kind) for keyword in tree.keywords},
    )


def _value(node: ast.expr, makers: Makers, kind: str) -> Any:
    if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id != "inf"):
        return _make(ast.unparse(node), makers, kind)
    if isinstance(node, ast.Name):
        return float("inf")
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)!r} is not a literal; write a number, a list or a quoted string") from None


def _find(name: str, makers: Makers, kind: str) -> Callable[..., Any]:
    folded = {_fold(known): maker for known, maker in makers.items()}
    if _fold(name) in folded:
        return folded[_fold(name)]
    hint = _hint(name, makers)
    raise ValueError(f"there is no {kind} {name!r}{hint or '; there are ' + ', '.join(makers)}")


def _hint(name: str, known: Any) -> str:
    folded = {_fold(k): k for k in known if not k.startswith("__")}
    near = difflib.get_close_matches(_fold(name), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def _fold(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace("+", "p")

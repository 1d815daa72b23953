"""The core solvers, as the demo runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from halfbridge.solvers import grids
from halfbridge.solvers.ancestral import Ancestral, ReverseDiffusion
from halfbridge.solvers.ddim import DDIM
from halfbridge.solvers.dpm import DPMSolver, DPMSolverPP
from halfbridge.solvers.euler import EulerMaruyama
from halfbridge.solvers.heun import Heun
from halfbridge.solvers.langevin import Langevin, PredictorCorrector
from halfbridge.solvers.solver import Solver

__all__ = ["METHODS", "Method"]


class Method(NamedTuple):
    """A solver, its name in tables, and whether it follows the probability flow (no noise)."""

    name: str
    solver: Solver
    deterministic: bool

    @property
    def grid(self) -> Callable[..., Any]:
        """Uniform in half log-SNR for the flow (Lu et al. 2022), in sqrt(t) for the SDE: the best of ours for each."""
        return grids.half_log_snr if self.deterministic else grids.quadratic

    def steps(self, budget: int) -> int:
        """The most steps that `budget` evaluations pay for; 0 if they pay for none."""
        return budget // self.solver.evals_per_step


METHODS = (
    Method("DDIM", DDIM(), True),
    Method("DPM-Solver-1", DPMSolver(order=1), True),
    Method("DPM-Solver-2", DPMSolver(order=2), True),
    Method("DPM-Solver-3", DPMSolver(order=3), True),
    Method("DPM-Solver++(2M)", DPMSolverPP(order=2), True),
    Method("Heun", Heun(), True),
    Method("Euler-Maruyama", EulerMaruyama(), False),
    Method("Reverse diffusion", ReverseDiffusion(), False),
    Method("Ancestral, posterior", Ancestral("posterior"), False),
    Method("Ancestral, transition", Ancestral("transition"), False),
    Method("DDIM, eta = 0.5", DDIM(eta=0.5), False),
    Method("Heun, churn = 10", Heun(churn=10.0), False),
    Method("Predictor-corrector", PredictorCorrector(ReverseDiffusion(), Langevin(snr=0.16)), False),
    Method("Annealed Langevin", Langevin(snr=0.16), False),
)

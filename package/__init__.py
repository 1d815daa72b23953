"""halfbridge: numerically explicit SDE and ODE solvers for score-based models and Schrödinger bridges.

import halfbridge as hb
field = hb.Field(hb.VP(), fn)                       # fn(t, x) predicts the noise
grid = hb.grids.half_log_snr(field.process, 10)
x = hb.sample(field, hb.DPMSolver(order=3), grid=grid, shape=(64, 2), seed=0)
"""

import importlib
from typing import TYPE_CHECKING, Any

from halfbridge import kernels, nets
from halfbridge.solvers import grids, reference
from halfbridge.solvers.algebra import NotLinear
from halfbridge.solvers.ancestral import Ancestral, ReverseDiffusion
from halfbridge.solvers.brownian import BrownianPath
from halfbridge.solvers.ddim import DDIM
from halfbridge.solvers.dequantise import bits_per_dim, dequantise
from halfbridge.solvers.divergence import Hutchinson, HutchPP, divergence
from halfbridge.solvers.dpm import DPMSolver, DPMSolverPP
from halfbridge.solvers.elbo import elbo
from halfbridge.solvers.engines import TorchsdeBrownian, TorchsdeNoise
from halfbridge.solvers.euler import EulerMaruyama
from halfbridge.solvers.field import Field, FieldOutputError
from halfbridge.solvers.heun import Heun
from halfbridge.solvers.langevin import Langevin, PredictorCorrector
from halfbridge.solvers.likelihood import Likelihood, log_likelihood
from halfbridge.solvers.plan import Plan, plan
from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.processes import (
    EDM,
    OU,
    VE,
    VP,
    Brownian,
    CosineVP,
    DiscreteVP,
    LinearProcess,
    Process,
    SubVP,
)  # fmt: skip
from halfbridge.solvers.reference.certify import Certificate, certify
from halfbridge.solvers.run import Solution, sample, solve
from halfbridge.solvers.runner import NonFiniteError, State
from halfbridge.solvers.solver import MultistepSolver, Solver

if TYPE_CHECKING:
    from halfbridge import training

__version__ = "0.1.0"

__all__ = [
    "DDIM", "EDM", "ODE", "OU", "SDE", "VE", "VP",
    "Ancestral", "Brownian", "BrownianPath", "Certificate", "CosineVP", "DPMSolver", "DPMSolverPP", "DiscreteVP", "EulerMaruyama",
    "Field", "FieldOutputError", "Heun", "HutchPP", "Hutchinson", "Langevin", "Likelihood", "LinearProcess", "MultistepSolver",
    "NonFiniteError", "NotLinear", "Plan", "PredictorCorrector", "Process", "ReverseDiffusion", "Solution", "Solver",
    "State", "SubVP", "TorchsdeBrownian", "TorchsdeNoise",
    "bits_per_dim", "certify", "dequantise", "divergence", "elbo", "grids", "kernels", "log_likelihood", "nets", "plan",
    "reference", "sample", "solve", "training",
]  # fmt: skip


LATER = {"testing": "halfbridge.solvers.testing", "training": "halfbridge.training"}
"""Imported when first asked for: `testing` needs hypothesis, and `training` takes as long as all the rest."""


def __getattr__(name: str) -> Any:
    if name in LATER:
        return importlib.import_module(LATER[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

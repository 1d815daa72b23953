"""How much the digits experiment does, and the solvers that it compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import halfbridge as hb

__all__ = ["FULL", "METHODS", "QUICK", "Method", "Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of the experiment."""

    holdout: float = 1 / 3
    copies: int = 16  # dequantisations of each training digit: with one, the network would learn its noise by heart
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    dropout: float = 0.1
    # After 600 steps the loss on held-out digits was 0.081 for the velocity and 0.083 for the noise. With times uniform in
    # the log-SNR bits per dimension would be 0.07 less, and 89.7 % of samples recognised against 92.7 %.
    predicts: str = "velocity"
    weighting: str = "simple"
    times: str = "uniform"
    steps: int = 3000
    batch_size: int = 64
    lr: float = 2e-3
    warmup: int = 100
    ema_decay: float = 0.998
    class_dropout: float = 0.2  # the network without a class is judged too: it must see enough digits without
    check_every: int = 250  # steps between losses on the held-out digits
    samples: int = 1000  # of each run, as many of each class
    budgets: tuple[int, ...] = (10, 20, 50)
    unconditional: int = 500
    splits: int = 20  # of the real digits, for the distances of one real sample to another
    projections: int = 200
    scored: int = 599  # held-out digits whose likelihood is computed
    flow_steps: int = 16  # of DPM-Solver-3
    bound_samples: int = 32
    checked: int = 8  # digits whose likelihood is also computed exactly and adaptively
    checked_probes: int = 16  # of Hutchinson's estimate that is compared with the exact one
    tolerance: float = 1e-4  # of the adaptive solver


FULL = Settings()
QUICK = dataclasses.replace(
    FULL,
    copies=2,
    width=8,
    steps=20,
    warmup=5,
    check_every=10,
    samples=60,
    budgets=(10, 20),
    unconditional=20,
    splits=3,
    projections=20,
    scored=40,
    flow_steps=4,
    bound_samples=4,
    checked=2,
    checked_probes=2,
    tolerance=1e-2,
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A solver and the grid it is run on."""

    name: str
    solver: hb.Solver
    grid: Callable[..., Any]

    def times(self, process: hb.Process, budget: int) -> Any:
        """The grid of as many steps as the budget of evaluations pays for."""
        return self.grid(process, budget // self.solver.evals_per_step)


# grids: of those in hb.grids the one with the smallest distances at 10 evaluations, tried on a network half trained
METHODS = (
    Method("Ancestral", hb.Ancestral(), hb.grids.quadratic),
    Method("PC", hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(snr=0.16)), hb.grids.quadratic),
    Method("Heun", hb.Heun(), hb.grids.quadratic),
    Method("DPM-3", hb.DPMSolver(order=3), hb.grids.half_log_snr),
)

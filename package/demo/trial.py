"""Running the solvers on a field and measuring what comes out."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import NamedTuple

import torch

from halfbridge.demo.methods import METHODS, Method
from halfbridge.demo.settings import Settings
from halfbridge.demo.targets import PROCESS, SHAPE, Target
from halfbridge.kernels import normal
from halfbridge.solvers import grids
from halfbridge.solvers.ancestral import Ancestral
from halfbridge.solvers.dpm import DPMSolver
from halfbridge.solvers.reference.two_sample import energy_distance, spread
from halfbridge.solvers.run import sample, solve

__all__ = ["Cell", "Trial", "measure", "rms"]

SHOWN = 6


class Cell(NamedTuple):
    """One run. Its errors are per pixel, over all starts and for the median start; nan for stochastic solvers."""

    budget: int
    steps: int
    evaluations: int
    error: float
    median: float
    distance: float
    seconds: float
    shown: torch.Tensor


class Trial(NamedTuple):
    """All runs on one field. `cells[method.name]` has one entry a budget, None where the budget pays for no step."""

    target: Target
    cells: dict[str, list[Cell | None]]
    curves: dict[str, list[tuple[int, float]]]
    """(evaluations, error of the median start) of the deterministic solvers, over more budgets and fewer starts."""
    floor: float
    """The distance between exact draws, as many as a run makes, and those that runs are compared with: rms of 8."""
    flow_distance: float
    """The energy distance of the exact flow's own end points from them: what no solver of the flow can better."""
    reference_error: float
    """The error that the exact flow itself may have: its difference from a run with half the steps."""


def rms(error: torch.Tensor) -> tuple[float, float]:
    """(over everything, of the median row): root mean squares of (n, *shape)."""
    squares = error.flatten(1).double().square().mean(dim=1)
    return math.sqrt(float(squares.mean())), math.sqrt(float(squares.median()))


def measure(target: Target, settings: Settings, seed: int) -> Trial:
    """Every method at every budget. The start of sample i is the same for all: draw 0 of (seed, i)."""
    fresh = target.law.sample(settings.fresh, seed + 1)
    distance = partial(energy_distance, y=fresh, y_spread=spread(fresh))
    draws = (target.law.sample(settings.samples, seed + 2 + k) for k in range(8))
    floor = math.sqrt(sum(distance(d) ** 2 for d in draws) / 8)
    starts = PROCESS.prior_std * normal((settings.starts, *SHAPE), seed, dtype=torch.float64)
    flow, coarse = (_flow(target, starts, n) for n in (settings.reference_steps, settings.reference_steps // 2))

    _sample(target, Method("warm-up", Ancestral(), False), 1, settings.samples, seed)
    cells: dict[str, list[Cell | None]] = {}
    for method in METHODS:
        row: list[Cell | None] = []
        for budget in settings.budgets:
            steps = method.steps(budget)
            if steps == 0:
                row.append(None)
                continue
            begin = time.perf_counter()
            x = _sample(target, method, steps, settings.samples, seed)
            seconds = time.perf_counter() - begin
            error = rms(x[: settings.starts] - flow) if method.deterministic else (math.nan, math.nan)
            evaluations = steps * method.solver.evals_per_step
            row.append(Cell(budget, steps, evaluations, *error, distance(x.flatten(1)), seconds, x[:SHOWN].clone()))
        cells[method.name] = row

    few = settings.curve_starts
    curves = {
        method.name: [
            (
                steps * method.solver.evals_per_step,
                rms(_sample(target, method, steps, few, seed) - flow[:few])[1],
            )
            for steps in map(method.steps, settings.curve_budgets)
        ]
        for method in METHODS
        if method.deterministic
    }
    return Trial(target, cells, curves, floor, distance(flow.flatten(1)), rms(flow - coarse)[0])


def _sample(target: Target, method: Method, steps: int, n: int, seed: int) -> torch.Tensor:
    grid = method.grid(PROCESS, steps)
    return sample(target.field, method.solver, grid=grid, shape=(n, *SHAPE), seed=seed)


def _flow(target: Target, starts: torch.Tensor, steps: int) -> torch.Tensor:
    """The probability flow from `starts`, in the precision that the field works in."""
    x = starts.to(target.dtype)
    with torch.no_grad():
        return solve(target.field, DPMSolver(order=3), x, grid=grids.half_log_snr(PROCESS, steps)).x

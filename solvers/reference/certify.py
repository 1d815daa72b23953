"""A verdict on a solver, ours or a user's: does it reach the order it declares, against answers that are exact?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from halfbridge.solvers import grids
from halfbridge.solvers.plan import plan
from halfbridge.solvers.processes import EDM, OU, VE, VP, CosineVP, Process, SubVP
from halfbridge.solvers.reference.flows import prescribed_data, prescribed_flow
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.reference.nonlinear import CHAIN_STEPS, chain_errors, flow_errors, has_chain
from halfbridge.solvers.reference.order import Study, default_steps, judged_on, law_errors, study
from halfbridge.solvers.reference.stages import misplaced_stages
from halfbridge.solvers.run import solve
from halfbridge.solvers.solver import Solver

__all__ = ["Certificate", "Finding", "certify"]

SLACK = 0.15  # by which an observed order may fall short of the declared one
PROCESSES: tuple[Process, ...] = (VP(), CosineVP(), SubVP(), VE(), EDM(), OU())


@dataclass(frozen=True)
class Finding:
    """One problem: what was solved, the errors at each number of steps, the order they show."""

    what: str
    study: Study


@dataclass(frozen=True)
class Certificate:
    """The verdict: `passed`, the smallest `order` seen, and the `findings` behind it. Print it.

    stages: inner evaluations that were taken off the trajectory although the step itself is exact there; a slip in a stage
    that costs accuracy but not order shows here only.
    """

    solver: str
    declared: int
    order: float
    evals_declared: int
    evals: float
    findings: tuple[Finding, ...]
    stages: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed; empty if it passed."""
        reasons = []
        if self.order <= 0.5:
            worst = min(self.findings, key=lambda f: f.study.order)
            reasons.append(
                f"order {_order(self.order)} seen, {self.declared} declared: the scheme is not consistent, its errors on "
                f"{worst.what!r} stay near {worst.study.errors[-1]:.1e}"
            )
        elif self.order < self.declared - SLACK:
            reasons.append(f"order {_order(self.order)} seen, {self.declared} declared")
        if self.evals > self.evals_declared:
            reasons.append(f"takes {self.evals:.3g} evaluations a step, declares {self.evals_declared}")
        return (*reasons, *self.stages)

    def plot(self, path: str | Path) -> None:
        """Write the errors against the number of steps, beside the declared slope, to an image file (needs matplotlib)."""
        from halfbridge.solvers.reference.verdict_plot import draw

        draw(self, path)

    def __str__(self) -> str:
        width = max([len(f.what) for f in self.findings], default=8)
        lines, shown = [f"{self.solver}: declares order {self.declared}", ""], None
        for f in self.findings:
            if f.study.steps != shown:
                shown = f.study.steps
                lines.append(f"  {'problem':<{width}}  {'order':>6}   " + "  ".join(f"{f'n = {n}':>9}" for n in shown))
            mark = " " if f.study.order >= self.declared - SLACK else "x"
            lines.append(
                f"{mark} {f.what:<{width}}  {_order(f.study.order):>6}   "
                + "  ".join(f"{error:9.2e}" for error in f.study.errors)
            )
        lines.append("")
        seen = f"order {_order(self.order)} seen, {self.declared} declared"
        lines += [f"FAILED: {reason}" for reason in self.reasons] or [f"PASSED: {seen}"]
        if self.stages and self.order >= self.declared - SLACK:
            lines.append(f"        ({seen}: this error does not lower the order)")
        return "\n".join(lines)

    __repr__ = __str__


def certify(
    solver: Solver | type[Solver],
    *,
    processes: Sequence[Process] = PROCESSES,
    steps: Sequence[int] | None = None,
    grid: Callable[..., Any] = grids.half_log_snr,
) -> Certificate:
    """Measure the order of `solver` and compare it with the one it declares (at least that, less 0.15, everywhere).

    On every process: the whole law on a correlated Gaussian, exactly. For deterministic solvers also two kinds of problem
    without a Gaussian: prescribed data predictions lambda^k, k up to the order, whose flow is elementary, and a two-dimensional
    mixture, against scipy's DOP853. For stochastic ones whose steps are Gaussian kernels: the law on a one-dimensional mixture,
    by Chapman-Kolmogorov quadrature, on grids of its own. Takes seconds.
    Last, on constant predictions, whose trajectories are known, inner stages must lie where the step's own exactness says.
    A solver that integrates no Field is judged on the probability flow or the reverse SDE.
    Raises NotLinear if the step is not a linear combination of vectors, ValueError for a step sized by norms (such schemes
    have no exact law) and for a solver that declares no order, as correctors do.
    """
    if isinstance(solver, type):
        solver = solver()
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver, got {solver!r}")
    if not processes:
        raise ValueError("processes = () leaves nothing to solve; pass at least one process")
    if solver.order < 1:
        raise ValueError(f"{solver!r} declares order {solver.order}: there is no order to certify")
    first, last = processes[0], processes[-1]
    counts = default_steps(solver) if steps is None else tuple(steps)
    p = plan(solver, judged_on(solver, _MIXTURE.field(first)), grid(first, 8))
    problems: list[tuple[str, Callable[[int], torch.Tensor], tuple[int, ...]]] = [
        (f"{_name(q)}, Gaussian law", partial(_law_errors, solver, q, grid), counts) for q in processes
    ]
    stages: tuple[str, ...] = ()
    if not p.draws:
        problems += [
            (f"{_name(first)}, data = lambda^{k}", partial(_prescribed_error, solver, first, k, grid), counts)
            for k in range(1, math.ceil(solver.order) + 1)
        ]
        problems += [
            (f"{_name(q)}, mixture flow", flow_errors(solver, q, _MIXTURE, grid), counts) for q in (first, last)
        ]
        stages = misplaced_stages(solver, first, grid(first, 8))
    elif has_chain(solver, first):
        problems += [(f"{_name(q)}, mixture law", chain_errors(solver, q, _LINE), CHAIN_STEPS) for q in (first, last)]
    findings = tuple(Finding(what, study(error, n, solver.order)) for what, error, n in problems)
    order = min(f.study.order for f in findings)
    return Certificate(repr(solver), solver.order, order, solver.evals_per_step, p.nfe / len(p.steps), findings, stages)


_GAUSSIAN = Gaussian([0.5, -1.0, 0.25], [[1.0, 0.3, 0.0], [0.3, 0.25, -0.1], [0.0, -0.1, 0.5]])
_MIXTURE = GaussianMixture([0.5, 0.3, 0.2], [[1.0, 0.0], [-0.6, 0.8], [-0.5, -0.9]], 0.2)
_LINE = GaussianMixture([0.5, 0.3, 0.2], [[1.0], [-0.6], [-1.2]], 0.2)
_STARTS = torch.tensor([[0.3, -0.4], [1.1, 0.6], [-0.8, 1.2], [-1.4, -0.2]], dtype=torch.float64, device="cpu")


def _law_errors(solver: Solver, process: Process, grid: Callable[..., Any], n: int) -> torch.Tensor:
    return law_errors(solver, process, _GAUSSIAN, grid(process, n))


def _prescribed_error(solver: Solver, process: Process, power: int, grid: Callable[..., Any], n: int) -> torch.Tensor:
    times = grid(process, n)
    t, s = float(times[0]), float(times[-1])
    x = process.sigma(t) * _STARTS
    exact = prescribed_flow(process, power, x, t, s)
    return solve(judged_on(solver, prescribed_data(process, power)), solver, x, grid=times).x - exact


def _name(process: Process) -> str:
    return type(process).__name__


def _order(order: float) -> str:
    return "exact" if order == math.inf else "none" if order == -math.inf else f"{order:.2f}"

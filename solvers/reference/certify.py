"""A verdict on a solver, ours or a user's: does it reach the order it declares, against answers that are exact?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halfbridge.solvers import grids
from halfbridge.solvers.algebra import NotLinear
from halfbridge.solvers.field import Field
from halfbridge.solvers.plan import plan
from halfbridge.solvers.processes import EDM, OU, VE, VP, CosineVP, Process, SubVP
from halfbridge.solvers.reference.flows import exact_flow, prescribed_data, prescribed_flow
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.reference.order import STEPS, Study, law_error, study
from halfbridge.solvers.run import solve
from halfbridge.solvers.solver import Solver

__all__ = ["Certificate", "Finding", "certify"]

SLACK = 0.15
PROCESSES: tuple[Process, ...] = (VP(), CosineVP(), SubVP(), VE(), EDM(), OU())


@dataclass(frozen=True)
class Finding:
    """One problem: what was solved, the errors at each number of steps, the order they show."""

    what: str
    study: Study


@dataclass(frozen=True)
class Certificate:
    """The verdict: `passed`, the smallest `order` seen, and the `findings` behind it. Print it."""

    solver: str
    declared: int
    order: float
    evals_declared: int
    evals: float
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return self.order >= self.declared - SLACK and self.order > 0.5 and self.evals <= self.evals_declared

    def __str__(self) -> str:
        steps = self.findings[0].study.steps if self.findings else ()
        width = max([len(f.what) for f in self.findings], default=8)
        lines = [f"{self.solver}: declares order {self.declared}", ""]
        lines.append(f"  {'problem':<{width}}  {'order':>6}   " + "  ".join(f"{f'n = {n}':>9}" for n in steps))
        for f in self.findings:
            mark = " " if f.study.order >= self.declared - SLACK else "x"
            lines.append(
                f"{mark} {f.what:<{width}}  {_order(f.study.order):>6}   "
                + "  ".join(f"{error:9.2e}" for error in f.study.errors)
            )
        lines.append("")
        if self.evals > self.evals_declared:
            lines.append(f"  takes {self.evals:.3g} evaluations a step, declares {self.evals_declared}")
        if self.passed:
            lines.append(f"PASSED: order {_order(self.order)} seen, {self.declared} declared")
        elif self.order <= 0.5:
            lines.append(f"FAILED: order {_order(self.order)} seen, {self.declared} declared: the scheme is not consistent")
        elif self.order < self.declared - SLACK:
            lines.append(f"FAILED: order {_order(self.order)} seen, {self.declared} declared")
        else:
            lines.append("FAILED: more evaluations than declared")
        return "\n".join(lines)

    __repr__ = __str__


def certify(
    solver: Solver | type[Solver],
    *,
    processes: Sequence[Process] = PROCESSES,
    steps: Sequence[int] = STEPS,
    grid: Callable[..., Any] = grids.half_log_snr,
) -> Certificate:
    """Measure the order of `solver` and compare it with the one it declares (at least that, less 0.15, everywhere).

    On every process: the whole law on a correlated Gaussian, exactly. For deterministic solvers also two problems without
    a Gaussian: prescribed data predictions lambda^k, k up to the order, whose flow is elementary, and a two-dimensional
    mixture, against scipy's DOP853. Takes seconds.
    Raises NotLinear if the step is not a linear combination of vectors, ValueError for a step sized by norms: such schemes
    have no exact law.
    """
    if isinstance(solver, type):
        solver = solver()
    p = plan(solver, processes[0], grid(processes[0], 8))
    findings = [
        Finding(f"{_name(q)}, Gaussian law", study(lambda n, q=q: law_error(solver, q, _GAUSSIAN, grid(q, n)), steps))  # type: ignore[misc]
        for q in processes
    ]
    if not p.draws:
        powers = range(1, solver.order + 1)
        findings += [
            Finding(f"{_name(processes[0])}, data = lambda^{k}", study(_prescribed_error(solver, processes[0], k, grid), steps))
            for k in powers
        ]
        for q in (processes[0], processes[-1]):
            findings.append(Finding(f"{_name(q)}, mixture flow", study(_flow_error(solver, q, grid), steps)))
    order = min(f.study.order for f in findings)
    return Certificate(repr(solver), solver.order, order, solver.evals_per_step, p.nfe / len(p.steps), tuple(findings))


_GAUSSIAN = Gaussian([0.5, -1.0, 0.25], [[1.0, 0.3, 0.0], [0.3, 0.25, -0.1], [0.0, -0.1, 0.5]])
_MIXTURE = GaussianMixture([0.5, 0.3, 0.2], [[1.0, 0.0], [-0.6, 0.8], [-0.5, -0.9]], 0.2)
_STARTS = torch.tensor([[0.3, -0.4], [1.1, 0.6], [-0.8, 1.2], [-1.4, -0.2]], dtype=torch.float64)


def _prescribed_error(solver: Solver, process: Process, power: int, grid: Callable[..., Any]) -> Callable[[int], float]:
    def error(n: int) -> float:
        times = grid(process, n)
        t, s = float(times[0]), float(times[-1])
        x = process.sigma(t) * _STARTS
        exact = prescribed_flow(process, power, x, t, s)
        return _distance(solve(prescribed_data(process, power), solver, x, grid=times).x, exact)

    return error


def _flow_error(solver: Solver, process: Process, grid: Callable[..., Any]) -> Callable[[int], float]:
    field = _MIXTURE.field(process)
    t_end = max(process.t_min, process.time_at(3.0))
    exact: list[torch.Tensor] = []

    def error(n: int) -> float:
        times = grid(process, n, t_end=t_end)
        t, s = float(times[0]), float(times[-1])
        x = math.hypot(process.alpha(t), process.sigma(t)) * _STARTS
        if not exact:
            exact.append(exact_flow(field, x, t, s))
        return _distance(solve(field, solver, x, grid=times).x, exact[0])

    return error


def _distance(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x - exact).abs().max() / exact.abs().max().clamp_min(1.0))


def _name(process: Process) -> str:
    return type(process).__name__


def _order(order: float) -> str:
    return "exact" if order == math.inf else "none" if order == -math.inf else f"{order:.2f}"

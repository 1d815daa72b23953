"""A plan: a whole run as evaluations and linear combinations with float64 coefficients.

Made once for (solver, process, grid, prediction) by running the solver's step on symbols; then read by the runner, the
table, the exact law and the counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from halfbridge.solvers import grids
from halfbridge.solvers.algebra import Apply, Combine, Draw, Evaluate, Op, Trace, Vector
from halfbridge.solvers.field import Field
from halfbridge.solvers.lowering import Program, inline, inputs, lower
from halfbridge.solvers.past import Name, leaves, map_past
from halfbridge.solvers.problems import ODE, SDE, Problem, ReverseSDE
from halfbridge.solvers.processes import Process
from halfbridge.solvers.solver import Solver

if TYPE_CHECKING:
    from halfbridge.solvers.capture import Capture

__all__ = ["Plan", "Step", "plan"]


@dataclass(frozen=True)
class Step:
    """One step of a plan: from `x` at time t to `out` at time s; `past` holds names where the solver keeps vectors."""

    index: int
    t: float
    s: float
    x: str
    out: str
    ops: tuple[Op, ...]
    past: Any = None

    @property
    def draws(self) -> list[Draw]:
        return [op.draw for op in self.ops if isinstance(op, (Combine, Apply)) and op.draw is not None]


@dataclass(frozen=True, eq=False)
class Plan:
    """The run of `solver` over `grid`, ready to be executed, printed or judged.

    nfe            evaluations of the field in the whole run
    peak_vectors   state-sized tensors alive at once, evaluations and buffers, beside the caller's own x
    str(plan)      the table; `to_dict()` the same as JSON
    `run(field, x, seed, first)` executes it.
    """

    solver: Solver
    problem: Problem
    grid: np.ndarray[Any, np.dtype[np.float64]]
    steps: tuple[Step, ...]

    @property
    def process(self) -> Process | None:
        return self.problem.process

    @property
    def predicts(self) -> str | None:
        field = self.problem if isinstance(self.problem, Field) else getattr(self.problem, "field", None)
        return None if field is None else field.predicts

    @property
    def nfe(self) -> int:
        return sum(isinstance(op, Evaluate) for step in self.steps for op in step.ops)

    @cached_property
    def draws(self) -> tuple[Draw, ...]:
        """The normals of the run, by index; one may serve several operations."""
        found = {draw.index: draw for step in self.steps for draw in step.draws}
        return tuple(found[k] for k in sorted(found))

    def draws_from(self, step: int) -> tuple[Draw, ...]:
        """The normals of the run from step `step` on."""
        if step == 0:
            return self.draws
        return tuple(draw for later in self.steps[step:] for draw in later.draws)

    @cached_property
    def program(self) -> Program:
        return lower(self.steps)

    @property
    def peak_vectors(self) -> int:
        return self.program.peak

    def run(
        self, field: Problem, x: torch.Tensor, seed: Any = None, first: int = 0, *, checks: bool = True
    ) -> torch.Tensor:
        """The state at the grid's last time, from `x` (batch, *shape) at its first.

        field: a Field with the plan's process and prediction, or the SDE or ODE for a plan of one. seed: an int or a noise
        object called (draw, t, s, like); needed only where the solver draws. first: the global index of x[0].
        checks: that each evaluation has x's shape, dtype and device (False: only the first). The result is not looked at for
        NaN: hb.solve does that. Differentiable in x and in the field's parameters when grad mode is on.
        torch.compile traces a run whole, its coefficients as constants.
        """
        if torch.compiler.is_compiling():
            from halfbridge.solvers.whole import run_compiled

            return run_compiled(self, field, x, seed, first)
        from halfbridge.solvers.runner import execute

        return execute(self, field, x, seed, first, checks=checks)

    def capture(self, field: Problem, x: torch.Tensor, seed: int | None = None, first: int = 0) -> Capture:
        """The run recorded for replays: one CUDA graph on a GPU. See `halfbridge.solvers.capture.Capture`."""
        from halfbridge.solvers.capture import Capture

        return Capture(self, field, x, seed, first)

    def __str__(self) -> str:
        from halfbridge.solvers.table import render

        return render(self)

    def __repr__(self) -> str:
        return f"<Plan of {self.solver!r}: {len(self.steps)} steps, {self.nfe} evaluations, {len(self.draws)} normals>"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain lists, strings and float64 numbers, for json.dumps."""
        from halfbridge.solvers.table import as_dict

        return as_dict(self)


def plan(
    solver: Solver, process: Process | Problem, grid: Sequence[float] | np.ndarray[Any, Any], predicts: str = "noise"
) -> Plan:
    """Trace `solver` over `grid`, for fields of `process` that predict `predicts`, or for an SDE or ODE problem.

    Raises NotLinear if the step is not a linear combination, ValueError for a bad grid (see `halfbridge.grids`) and
    TypeError if the solver does not integrate this kind of problem.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be an instance of Solver, got {solver!r}")
    problem: Problem
    if isinstance(process, Process):
        problem = Field(process, _not_a_field, predicts)
    elif isinstance(process, (Field, SDE, ODE)):
        problem = process
    else:
        raise TypeError(f"process must be a Process, a Field, an SDE or an ODE, got {type(process).__name__}")
    return trace(solver, problem, check_grid(problem, grid))


def check_grid(problem: Problem, grid: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The grid as float64, or the error that says what is wrong with it for this problem."""
    if isinstance(problem, Field):
        return grids.check(problem.process, grid)
    times = grids.check_times(grid)
    if isinstance(problem, ReverseSDE) and times[0] < times[-1]:
        raise ValueError(
            f"the grid goes from {times[0]:.6g} up to {times[-1]:.6g}, but the reverse SDE runs from noise to data; pass "
            "decreasing times, or problem.reversed() with increasing ones"
        )
    way = "increasing" if times[0] < times[-1] else "decreasing"
    if isinstance(problem, SDE) and problem.runs not in (None, way):
        raise ValueError(
            f"the grid goes from {times[0]:.6g} to {times[-1]:.6g}, but this SDE is for {problem.runs} times; pass the SDE of "
            "the other direction, or the grid turned round"
        )
    return times


def trace(solver: Solver, problem: Problem, grid: np.ndarray[Any, np.dtype[np.float64]]) -> Plan:
    solver.check(problem)
    times = [float(t) for t in grid]
    solver = solver.on(problem.process, times)
    recorder, steps = Trace(), []
    x, past = recorder.vector("x0"), None
    for index, (t, s) in enumerate(itertools.pairwise(times)):
        recorder.begin_step(t, s)
        before = recorder.materialise(x)
        x, past = solver.advance(problem, x, t, s, recorder.draw, past)
        out = recorder.materialise(x)
        names = map_past(past, lambda v: Name(recorder.materialise(v)), Vector)
        steps.append(Step(index, t, s, before, out, tuple(recorder.ops), names))
        x, past = recorder.vector(out), map_past(names, recorder.vector, Name)
    return Plan(solver, problem, grid, inline(_forget(steps)))


def _forget(steps: list[Step]) -> list[Step]:
    """Steps without the pasts that nobody reads: the last one's, and one before a step that ends at the data."""
    kept = []
    for step, after in itertools.zip_longest(steps, steps[1:]):
        remembered = set(leaves(step.past, Name))
        read = set() if after is None else {name for op in after.ops for name in inputs(op)} | {after.out}
        read |= set() if after is None else set(leaves(after.past, Name))
        kept.append(step if not remembered or remembered & read else replace(step, past=None))
    return kept


def _not_a_field(t: float, x: torch.Tensor) -> torch.Tensor:
    raise TypeError("this plan was made without a field: pass one to plan.run(field, x, seed)")

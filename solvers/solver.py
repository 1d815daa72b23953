"""What a solver is: one step, written once; and who owns the end of a grid.

A step is arithmetic on vectors. It never loops over a grid, allocates, makes noise or knows what a vector is made of: the
same function runs on tensors and, traced on symbols, becomes a plan.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from halfbridge.solvers.field import Field
from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.processes import Process

__all__ = ["MultistepSolver", "Solver"]

Self = TypeVar("Self", bound="Solver")


class Solver(ABC):
    """A one-step method. Subclass it and write `step`; declare what you know in the class attributes.

    order            order of convergence of the law (of the solution, for a deterministic solver)
    family           "ode", "sde" or "corrector"
    evals_per_step   evaluations of the field in one step
    source           the paper
    integrates       the problems that `step` understands
    stochasticity    l in dx = [a x - (1 + l^2)/2 g^2 score] dt + l g dW, the equation solved as the steps shrink
                     (the probability flow at l = 0, the reverse SDE at l = 1); None where it is not one number
    """

    order: int = 1
    family: str = "sde"
    evals_per_step: int = 1
    source: str = ""
    integrates: tuple[type, ...] = (Field, SDE, ODE)
    stochasticity: float | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def step(self, field: Any, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        """The state at time s from the state x at time t; `draw()` is a fresh standard normal vector."""

    def finish(self, field: Field, x: Any, t: float, draw: Callable[..., Any]) -> Any:
        """The state where sigma(s) = 0: the data prediction at t, which every consistent step tends to."""
        return field.data(t, x)

    def on(self: Self, process: Process | None, grid: Sequence[float]) -> Self:
        """A copy bound to a run, for a solver that needs its grid; here the solver itself."""
        return self

    def advance(
        self, problem: Any, x: Any, t: float, s: float, draw: Callable[..., Any], past: Any = None
    ) -> tuple[Any, Any]:
        """(state at s, past): the step, or the end of the grid. Runners call this, solvers write `step`."""
        if ends_at_data(problem, s):
            return self.finish(problem, x, t, draw), None
        return self.step(problem, x, t, s, draw), None

    def check(self, problem: Any) -> None:
        """Raise TypeError if the solver does not integrate this kind of problem."""
        if not isinstance(problem, self.integrates):
            names = " or ".join(kind.__name__ for kind in self.integrates)
            raise TypeError(
                f"{type(self).__name__} integrates {names} problems, got {type(problem).__name__}; "
                "EulerMaruyama integrates every kind of problem, Heun a Field or an ODE"
            )

    def _bound(self: Self, **values: Any) -> Self:
        """A copy with attributes of the run set on it (the dataclasses are frozen)."""
        bound = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(bound, name, value)
        return bound


class MultistepSolver(Solver):
    """A method that remembers. `step` takes `past` (None at first) and returns (x, past), past a NamedTuple.

    What is remembered is a value, never state on the solver: a run can be stepped by hand, saved and resumed. Vectors in
    `past` are stored at the end of the step; numbers in it stay numbers.
    """

    @abstractmethod
    def step(  # type: ignore[override]
        self, field: Any, x: Any, t: float, s: float, draw: Callable[..., Any], past: Any
    ) -> tuple[Any, Any]:
        """(state at s, what the next step needs to know)."""

    def advance(
        self, problem: Any, x: Any, t: float, s: float, draw: Callable[..., Any], past: Any = None
    ) -> tuple[Any, Any]:
        if ends_at_data(problem, s):
            return self.finish(problem, x, t, draw), None
        result = self.step(problem, x, t, s, draw, past)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"{type(self).__name__}.step must return (x, past), got {type(result).__name__}")
        return result


def ends_at_data(problem: Any, s: float) -> bool:
    return isinstance(problem, Field) and problem.process.sigma(s) == 0.0

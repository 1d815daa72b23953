"""A plan's run as one sequence of torch operations, without a decision that depends on a value: what torch.compile traces
whole and what a CUDA graph captures. `runner.execute` is the same run with buffers and checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from halfbridge.kernels import combine
from halfbridge.kernels.traced import constant
from halfbridge.solvers.algebra import Combine, Evaluate
from halfbridge.solvers.field import check_output
from halfbridge.solvers.noise import Normals, OneNormal, check_seeded
from halfbridge.solvers.runner import check_plan, check_state

if TYPE_CHECKING:
    from halfbridge.solvers.plan import Plan

__all__ = ["PlanNumbers", "run_compiled", "run_whole"]


class PlanNumbers(Normals):
    """The numbers of a run as the plan holds them: Python floats, which a compiled graph keeps as constants, those of a second
    plan too, which torch.compile would hold as symbols."""

    def time(self, at: tuple[int, int], t: float) -> Any:
        """Of the evaluation at (step, place in it)."""
        return t

    def coefficients(self, at: tuple[int, int], given: tuple[float, ...]) -> Any:
        return tuple(constant(c) for c in given)

    def scale(self, at: tuple[int, int], given: float) -> Any:
        return constant(given)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def fill(plan: Plan) -> None:
    """Fill the plan's cached properties, which torch.compile can read and not trace."""
    _ = plan.program, plan.draws


def run_compiled(plan: Plan, problem: Any, x: torch.Tensor, seed: Any, first: int) -> torch.Tensor:
    """`plan.run` while torch.compile traces it."""
    fill(plan)
    check_plan(plan, problem)
    check_state(x)
    check_seeded(seed, plan.draws)
    return run_whole(plan, problem, x, PlanNumbers(seed, first, x))


def run_whole(plan: Plan, problem: Any, x: torch.Tensor, numbers: Any) -> torch.Tensor:
    """The state at the grid's last time, from x at its first; `numbers` gives times, coefficients and noise."""
    program = plan.program
    if not plan.steps:
        return x
    registers: list[Any] = [None] * program.registers
    registers[program.inputs[0]] = x
    for i in range(len(plan.steps)):
        for j in range(len(program.steps[i])):
            instruction, at = program.steps[i][j], (i, j)
            op = instruction.op
            vectors = [registers[r] for r in instruction.sources]
            if isinstance(op, Evaluate):
                value = problem.evaluate(numbers.time(at, op.t), vectors[0])
                if value.shape != x.shape or value.dtype != x.dtype:
                    check_output(value, vectors[0], op.t, f" in step {i}")
            elif isinstance(op, Combine):
                value = _combined(vectors, instruction, at, numbers, x)
            else:
                noise = None if op.draw is None else OneNormal(numbers, op.draw)
                value = op.run(vectors, noise, None, *numbers.coefficients(at, op.numbers))
            registers[instruction.out] = value
            for r in instruction.frees:
                registers[r] = None
        for r in program.releases[i]:
            registers[r] = None
    return registers[program.outputs[-1]]  # type: ignore[no-any-return]


def _combined(vectors: list[Any], instruction: Any, at: tuple[int, int], numbers: Any, x: torch.Tensor) -> torch.Tensor:
    coefficients, draw = numbers.coefficients(at, instruction.coefficients), instruction.draw
    if not vectors:
        vectors, coefficients = [torch.zeros_like(x)], (0.0,)
    if draw is None:
        return combine(vectors, coefficients)
    scale = numbers.scale(at, instruction.scale)
    noise = numbers.fused(draw, scale)
    if noise is None:
        return combine([*vectors, numbers.tensor(draw)], (*coefficients, scale))
    return combine(vectors, coefficients, noise=noise)

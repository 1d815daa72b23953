"""A plan's run as one sequence of torch operations, without a decision that depends on a value: what torch.compile traces
whole and what a CUDA graph captures. `runner.execute` is the same run with buffers and checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from halfbridge.kernels import DeviceNoise, Noise, combine, normal
from halfbridge.solvers.algebra import Combine, Draw, Evaluate
from halfbridge.solvers.field import check_output

if TYPE_CHECKING:
    from halfbridge.solvers.plan import Plan

__all__ = ["PlanNumbers", "Source", "run_whole"]


class Source(NamedTuple):
    """One draw of a run: `noise` regenerates it inside a kernel, or `made` is the tensor a noise object returned."""

    draw: Draw
    like: torch.Tensor
    noise: Noise | DeviceNoise | None
    made: torch.Tensor | None

    def __call__(self, shape: Any = None) -> torch.Tensor:
        """The normal as a tensor, of another sample shape if asked."""
        if shape is None and self.made is not None:
            return self.made
        like = self.like if shape is None else self.like.new_empty(tuple(shape))
        if isinstance(self.noise, Noise):
            return normal(tuple(like.shape), *self.noise[1:], dtype=like.dtype, device=like.device)
        if self.noise is not None:
            return combine([torch.zeros_like(like)], [0.0], noise=self.noise)
        raise ValueError(
            f"draw {self.draw.index} is of shape {tuple(like.shape)}, and a noise object makes normals like the state only here; "
            "pass an int as seed"
        )

    def fused(self) -> Any:
        """What the kernels' `noise` argument takes."""
        return self.made if self.noise is None else self.noise


class PlanNumbers:
    """The numbers of a run as the plan holds them: Python floats, which a compiled graph keeps as constants."""

    def __init__(self, seed: Any, first: int) -> None:
        self.seed, self.first = seed, first

    def time(self, at: tuple[int, int], t: float) -> Any:
        return t

    def coefficients(self, at: tuple[int, int], given: tuple[float, ...]) -> Any:
        """Of the operation at (step, place in it)."""
        return given

    def scale(self, at: tuple[int, int], given: float) -> Any:
        return given

    def source(self, draw: Draw, scale: Any, like: torch.Tensor) -> Source:
        if callable(self.seed):
            return Source(draw, like, None, self.seed(draw.index, draw.t, draw.s, like))
        return Source(draw, like, Noise(scale, self.seed, draw.index, self.first), None)


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
                source = None if op.draw is None else numbers.source(op.draw, 1.0, x)
                value = op.run(vectors, source, None, *numbers.coefficients(at, op.numbers))
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
    source = numbers.source(draw, scale, x)
    if source.made is not None:
        return combine([*vectors, source.made], (*coefficients, scale))
    return combine(vectors, coefficients, noise=source.noise)

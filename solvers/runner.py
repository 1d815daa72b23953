"""Execution: a plan by its instructions, or a solver's step on tensors. Loops, buffers, checks; no formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from halfbridge.kernels.dispatch import resolve
from halfbridge.solvers.algebra import Combine, Draw, Evaluate
from halfbridge.solvers.field import Field, FieldOutputError, check_output
from halfbridge.solvers.noise import Normals, OneNormal, Stream
from halfbridge.solvers.past import Register, leaves, map_past
from halfbridge.solvers.plan import Plan
from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.solver import Solver

__all__ = ["NonFiniteError", "State", "check_plan", "check_state", "execute", "execute_on_tensors"]


class State(NamedTuple):
    """A run after `step` steps: all that is needed to go on with it, bit for bit.

    x: (batch, *shape), at time t = grid[step]. past: what a multistep solver remembers and the next step reads (None
    otherwise). draws: the normals drawn so far. Give it to `hb.solve` in place of x, with the same solver, grid, seed and first.
    """

    x: torch.Tensor
    step: int
    past: Any = None
    draws: int | None = None
    t: float | None = None


class NonFiniteError(FloatingPointError):
    """A state or an evaluation is infinite or NaN."""


AfterStep = Callable[[int, torch.Tensor, Any], None]


def execute(
    plan: Plan, problem: Any, x: torch.Tensor | State, seed: Any = None, first: int = 0,
    *, after_step: AfterStep | None = None, checks: bool = True, check_each: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Run `plan` on `problem`. `after_step(i, x, past)` sees the state after step i (its buffers are overwritten later).

    checks: every evaluation must be like the state, not only the first. check_each: states and evaluations must be finite.
    """
    check_plan(plan, problem)
    state = x if isinstance(x, State) else State(x, 0)
    check_state(state.x)
    program, begin = plan.program, state.step
    x = state.x if begin == 0 else state.x.clone()
    normals = Normals(seed, first, x, plan.draws_from(begin))
    registers: list[Any] = [None] * program.registers
    if begin < len(plan.steps):
        registers[program.inputs[begin]] = x
    if begin:
        _restore(registers, program.pasts[begin - 1], state.past)
        for vector in leaves(state.past, torch.Tensor):
            _like_the_state(vector, x, plan.solver, begin - 1)
    in_place = not torch.is_grad_enabled()  # a graph may hold any earlier state
    evaluate = problem.evaluate
    combine = resolve("combine", x.device.type, x.dtype, x.numel() * (len(plan.steps) - begin))
    shape, dtype, device, plain = x.shape, x.dtype, x.device, torch.Tensor
    unseen = True
    for i in range(begin, len(plan.steps)):
        for op, out, gather, coefficients, draw, scale, reuse, frees, _ in program.steps[i]:
            if isinstance(op, Evaluate):
                (at,) = gather(registers)
                value = evaluate(op.t, at)
                if (unseen or checks) and not (
                    value.__class__ is plain
                    and value.shape == shape
                    and value.dtype is dtype
                    and value.device == device
                ):
                    check_output(value, at, op.t, f" in step {i}")
                unseen = False
                if check_each:
                    _finite(value, f"in the evaluation of the field at t = {op.t:.6g} in step {i}")
                if in_place and value.untyped_storage().data_ptr() == at.untyped_storage().data_ptr():
                    value = value.clone()  # the field returned a view of its input, whose buffer is overwritten next
            elif isinstance(op, Combine):
                buffer = registers[reuse] if in_place else None
                if draw is None and coefficients:
                    value = combine(gather(registers), coefficients, None, buffer)
                elif draw is None:
                    value = torch.zeros_like(x)  # the terms cancelled
                elif draw.index in normals.block:
                    value = combine(
                        (*gather(registers), normals.block[draw.index]), (*coefficients, scale), None, buffer
                    )
                else:
                    value = _noisy(combine, gather(registers), coefficients, draw, scale, normals, buffer)
            else:
                noise = None if draw is None else OneNormal(normals, draw)
                value = op.run(gather(registers), noise, registers[reuse] if in_place else None, *op.numbers)
            registers[out] = value
            if frees:
                for r in frees:
                    registers[r] = None
        if check_each:
            _finite(registers[program.outputs[i]], _where(i, plan.steps[i].t, plan.steps[i].s))
        if after_step is not None:
            past = map_past(program.pasts[i], registers.__getitem__, Register)
            after_step(i, registers[program.outputs[i]], past)
        for r in program.releases[i]:
            registers[r] = None
    return registers[program.outputs[-1]] if begin < len(plan.steps) else x


def _noisy(
    combine: Callable[..., torch.Tensor], vectors: tuple[torch.Tensor, ...], coefficients: tuple[float, ...],
    draw: Draw, scale: float, normals: Normals, buffer: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    noise = normals.fused(draw, scale)
    if noise is None:
        return combine((*vectors, normals.tensor(draw)), (*coefficients, scale), None, buffer)
    if not vectors:
        vectors, coefficients = (torch.zeros_like(normals.x),), (1.0,)
    return combine(vectors, coefficients, noise, buffer)


def execute_on_tensors(
    solver: Solver, problem: Any, x: torch.Tensor | State, grid: Any, seed: Any = None, first: int = 0,
    *, after_step: Callable[[int, torch.Tensor, Any, int], None] | None = None, check_each: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The solver's own step, on tensors, one after another: the reference execution, for any step at all."""
    state = x if isinstance(x, State) else State(x, 0, None, 0)
    check_state(state.x)
    solver.check(problem)
    times = [float(t) for t in grid]
    solver = solver.on(problem.process, times)
    if state.draws is None:
        raise ValueError("State.draws is None; a step without a plan needs the count of normals drawn so far")
    draw = Stream(Normals(seed, first, state.x), state.draws)
    now, past = state.x.clone(), state.past
    for i in range(state.step, len(times) - 1):
        t, s = draw.span = (times[i], times[i + 1])
        try:
            now, past = solver.advance(problem, now, t, s, draw, past)
        except FieldOutputError as error:
            raise FieldOutputError(f"in step {i}: {error}") from None
        _like_the_state(now, state.x, solver, i)
        if check_each:
            _finite(now, _where(i, t, s))
        if after_step is not None:
            after_step(i, now, past, draw.count)
    return now


def _like_the_state(x: Any, start: torch.Tensor, solver: Solver, i: int) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"step {i} of {solver!r} returned a {type(x).__name__}; return the new state, a tensor like x")
    for name in ("shape", "dtype", "device"):
        got, want = getattr(x, name), getattr(start, name)
        if got != want:
            raise ValueError(
                f"step {i} of {solver!r} returned {name} {got} for a state of {name} {want}; return a tensor like x"
            )


def check_state(x: Any) -> None:
    """Raise unless `x` is a floating-point tensor of shape (batch, *shape)."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a tensor of shape (batch, *shape), got {type(x).__name__}")
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}; it must be floating point with a batch dimension first"
        )


def check_plan(plan: Plan, problem: Any) -> None:
    """Raise unless `plan` was made for a problem of this kind, process, prediction and diffusion."""
    planned = plan.problem
    kind = Field if isinstance(planned, Field) else ODE if isinstance(planned, ODE) else SDE
    if not isinstance(problem, kind):
        raise TypeError(
            f"this is the plan of {kind.__name__} problems, got {type(problem).__name__}; make a plan for it"
        )
    source = problem if isinstance(problem, Field) else getattr(problem, "field", None)
    if (None if source is None else source.predicts) != plan.predicts:
        got = "no field" if source is None else f"a field that predicts {source.predicts!r}"
        raise ValueError(f"the plan was made for predicts = {plan.predicts!r}, got {got}; make a plan for it")
    if source is not None and source.process != plan.process:
        raise ValueError(
            f"the plan was made for {plan.process!r}, got a field of {source.process!r}; make a plan for it"
        )
    if source is None and isinstance(problem, SDE) and isinstance(planned, SDE) and not planned.same_diffusion(problem):
        raise ValueError(
            "the plan holds the diffusion of the SDE it was made for, and this one has another; make a plan for it"
        )


def _restore(registers: list[Any], kept: Any, past: Any) -> None:
    """Put the vectors of a saved past where the program keeps them; its numbers must be those of the plan."""
    if isinstance(kept, Register):
        if not isinstance(past, torch.Tensor):
            raise ValueError(
                f"State.past holds a {type(past).__name__} where the solver remembers a vector; {_OWN_STATE}"
            )
        registers[kept] = past.clone()
    elif isinstance(kept, tuple):
        if not isinstance(past, tuple) or len(past) != len(kept):
            raise ValueError(f"State.past is {past!r}, but the solver remembers {len(kept)} things; {_OWN_STATE}")
        for place, value in zip(kept, past, strict=True):
            _restore(registers, place, value)
    elif kept != past:
        raise ValueError(f"State.past holds {past!r} where this run has {kept!r}; {_OWN_STATE}")


_OWN_STATE = "resume with a State of the same solver, grid and execution"


def _finite(x: torch.Tensor, where: str) -> None:
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {x.numel()} entries are infinite or NaN {where}; "
            "check the field there, or the step size (check_finite=False turns this check off)"
        )


def _where(i: int, t: float, s: float) -> str:
    return f"in the state after step {i} (from t = {t:.6g} to {s:.6g})"

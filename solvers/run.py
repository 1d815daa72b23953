"""`sample` and `solve`: a solver over a grid, with saving, callbacks, progress and checks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch

from halfbridge.solvers.algebra import Evaluate, NotLinear
from halfbridge.solvers.brownian import BrownianPath
from halfbridge.solvers.field import Field
from halfbridge.solvers.noise import check_first, check_seed, prior_normal
from halfbridge.solvers.past import map_past
from halfbridge.solvers.plan import Plan, check_grid, trace
from halfbridge.solvers.prior import misplaced
from halfbridge.solvers.problems import ODE, SDE, Problem
from halfbridge.solvers.runner import NonFiniteError, State, check_state, execute, execute_on_tensors
from halfbridge.solvers.solver import Solver

__all__ = ["Solution", "sample", "solve"]


@dataclass(frozen=True)
class Solution:
    """The end of a run and what was saved of it.

    x: (batch, *shape), the state at the grid's last time. times: the saved times; trajectory: (len(times), batch, *shape).
    nfe: evaluations of the field made in this call. With save="last" the trajectory is a view of x.
    """

    x: torch.Tensor
    times: np.ndarray[Any, np.dtype[np.float64]]
    trajectory: torch.Tensor
    nfe: int


def solve(
    problem: Problem,
    solver: Solver,
    x: torch.Tensor | State,
    *,
    grid: Sequence[float] | np.ndarray[Any, Any],
    seed: Any = None,
    first: int = 0,
    save: str | Sequence[float] = "last",
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    check_finite: bool = True,
    plan: bool = True,
) -> Solution:
    """Integrate `problem` over `grid` from `x` (batch, *shape), at the grid's first time.

    problem   a Field (the grid decreases), an SDE or an ODE (either way)
    x         a tensor, or a State that a callback saved: the run goes on from there, bit for bit
    seed      an int in [0, 2^64), a BrownianPath (one path on every grid) or another noise object called (draw, t, s, like);
              deterministic runs need none
    first     global index of x[0]: sample i draws what it would draw in a batch of all samples
    save      "last", "all" (start included) or a sequence of times of the grid
    callback  called with the State after each step (its tensors are copies)
    check_finite  raise NonFiniteError with step, time and count if the result is not finite
    plan      run the plan where the step has one; False runs the step on tensors

    Gradients flow to x and the field's parameters when grad mode is on. The field must not write to the x it is given, and
    must clone it to keep it: without gradients its buffer is used again.
    Raises ValueError or TypeError naming the argument for a bad grid, seed, save, x or field output.
    """
    if not isinstance(problem, (Field, SDE, ODE)):
        raise TypeError(
            f"problem must be a Field, SDE or ODE, got {type(problem).__name__} (hb.Field(process, fn) makes a field of fn(t, x))"
        )
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver, got {solver!r}")
    times = check_grid(problem, grid)
    solver.check(problem)
    check_seed(seed)
    check_first(first)
    check_state(x.x if isinstance(x, State) else x)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable as callback(state), got {type(callback).__name__}")
    begin = x.step if isinstance(x, State) else 0
    if not isinstance(begin, int) or not 0 <= begin < len(times):
        raise ValueError(f"State.step = {begin} lies outside the grid of {len(times) - 1} steps")
    if isinstance(x, State) and x.t is not None and x.t != times[begin]:
        raise ValueError(
            f"the State was saved at t = {x.t!r}, but step {begin} of this grid is at {float(times[begin])!r}; resume with the "
            "grid of the run"
        )
    made = _plan_of(solver, problem, times) if plan else None
    saver = _Saver(times, save, begin, x.x if isinstance(x, State) else x)

    def run(watch: Callable[..., None] | None, **options: Any) -> tuple[torch.Tensor, int]:
        if made is not None:
            nfe = sum(isinstance(op, Evaluate) for step in made.steps[begin:] for op in step.ops)
            return execute(made, problem, x, seed, first, after_step=watch, **options), nfe
        counted, calls = _counted(problem)
        return execute_on_tensors(solver, counted, x, times, seed, first, after_step=watch, **options), calls()

    drawn = _draws_after(made) if made is not None else {}
    with _bar(progress, len(times) - 1, begin) as tick:

        def watch(i: int, state: torch.Tensor, past: Any, draws: int | None = None) -> None:
            saver(i + 1, state)
            tick()
            if callback is not None:
                count = drawn.get(i, 0) if draws is None else draws
                kept = map_past(past, lambda v: v.detach().clone(), torch.Tensor)
                callback(State(state.detach().clone(), i + 1, kept, count, float(times[i + 1])))

        watched = saver.needed or callback is not None or progress
        result, nfe = run(watch if watched else None)
    if check_finite and not torch.isfinite(result).all():
        _name_the_step(x.x if isinstance(x, State) else x, run)
    return Solution(result, saver.times, saver.trajectory(result), nfe)


def sample(
    field: Field,
    solver: Solver,
    *,
    grid: Sequence[float] | np.ndarray[Any, Any],
    shape: Sequence[int],
    seed: Any,
    first: int = 0,
    prior: Any = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = False,
    check_finite: bool = True,
) -> torch.Tensor:
    """Samples `first .. first + shape[0] - 1` of the model: a prior draw each, integrated to the grid's last time.

    The prior is N(0, prior_std^2 I) of the process (draw 0 of the generator), or `prior.sample(n, seed)`, e.g. a
    hb.reference.Gaussian. A sample depends on the seed and its global index only, not on the batch it is made in.
    Runs without gradients (use solve for those). Returns (batch, *shape) of `dtype` on `device`.
    Raises ValueError for a shape without a batch, and for Brownian motion without `prior`: it has no stationary law.
    """
    if not isinstance(field, Field):
        raise TypeError(
            f"field must be a Field, got {type(field).__name__}; hb.Field(process, fn) makes one of fn(t, x)"
        )
    if not isinstance(shape, (tuple, list, torch.Size)) or not shape:
        raise ValueError(f"shape = {shape!r} must be (batch, *shape) with the batch first, such as (64, 1, 8, 8)")
    if any(isinstance(n, bool) or not isinstance(n, Integral) or n < 0 for n in shape):
        raise ValueError(f"shape = {tuple(shape)!r} must hold integers of at least 0")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype = {dtype!r} must be a floating-point torch dtype")
    if seed is None:
        raise ValueError("seed = None: the prior is drawn from it; pass an int or a noise object")
    check_seed(seed)
    check_first(first)
    times = check_grid(field, grid)
    with torch.no_grad():
        x = _start(
            field, float(times[0]), torch.empty([int(n) for n in shape], dtype=dtype, device=device), seed, first, prior
        )
        return solve(
            field, solver, x, grid=times, seed=seed, first=first, progress=progress, check_finite=check_finite
        ).x


def _start(field: Field, t: float, like: torch.Tensor, seed: Any, first: int, prior: Any) -> torch.Tensor:
    process = field.process
    if prior is None:
        if wrong := misplaced(process, t):
            warnings.warn(f"the grid starts at {wrong}", stacklevel=3)
        return process.prior_std * prior_normal(seed, t, like, first)
    if isinstance(seed, BrownianPath):
        seed, first = seed.seed, seed.first + first
    if callable(seed):
        raise ValueError("seed is a noise object, but prior.sample needs an int; draw x yourself and use hb.solve")
    if not callable(getattr(prior, "sample", None)):
        raise TypeError(
            f"prior must be a law with sample(n, seed, first=0), such as hb.reference.Gaussian, got {prior!r}"
        )
    options = {} if first == 0 else {"first": first}
    try:
        x = torch.as_tensor(prior.sample(len(like), seed, **options))
    except TypeError as error:
        raise TypeError(f"prior.sample(n, seed{', first' if first else ''}) failed: {error}") from error
    if x.numel() != like.numel():
        raise ValueError(f"prior.sample gave shape {tuple(x.shape)}, which does not fill shape = {tuple(like.shape)}")
    return x.reshape(like.shape).to(like)


def _plan_of(solver: Solver, problem: Problem, times: np.ndarray[Any, Any]) -> Plan | None:
    try:
        return trace(solver, problem, times)
    except NotLinear:
        return None


def _draws_after(plan: Plan) -> dict[int, int]:
    counts, seen = {}, 0
    for step in plan.steps:
        seen = max([seen, *(draw.index for draw in step.draws)])
        counts[step.index] = seen
    return counts


def _counted(problem: Problem) -> tuple[Problem, Callable[[], int]]:
    count = 0

    def fn(t: float, x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return problem.evaluate(t, x)

    return problem.with_function(fn), lambda: count


def _name_the_step(x: torch.Tensor, run: Callable[..., Any]) -> None:
    """Runs are reproducible: go through the run again, checking each step, and raise where it breaks."""
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {x.numel()} entries of the initial x are infinite or NaN")
    with torch.no_grad():
        run(None, check_each=True)
    raise NonFiniteError(
        "the result is not finite, but a second run with checks was: the field is not a function of (t, x) alone "
        "(dropout, or a call to a global generator); put the network in eval mode"
    )


class _Saver:
    """Keeps the states that `save` asks for."""

    def __init__(self, grid: np.ndarray[Any, Any], save: str | Sequence[float], begin: int, x: torch.Tensor) -> None:
        last = len(grid) - 1
        if isinstance(save, str):
            if save not in ("last", "all"):
                raise ValueError(f"save = {save!r} is not 'last', 'all' or a sequence of times of the grid")
            self.indices = [last] if save == "last" else list(range(begin, last + 1))
        elif not isinstance(save, (Sequence, np.ndarray, torch.Tensor)):
            raise TypeError(f"save = {save!r} is not 'last', 'all' or a sequence of times of the grid")
        else:
            self.indices = [_index(grid, float(t)) for t in save]
            early = [i for i in self.indices if i < begin]
            if early:
                raise ValueError(f"save: the time {grid[early[0]]:.6g} lies before step {begin}, where this run begins")
        self.times = grid[self.indices]
        self.needed = any(i != last for i in self.indices)
        self._last = last
        self._kept: dict[int, torch.Tensor] = {}
        if begin in self.indices and begin != last:
            self._kept[begin] = x.clone()

    def __call__(self, index: int, x: torch.Tensor) -> None:
        if index in self.indices and index != self._last:
            self._kept[index] = x.clone()

    def trajectory(self, x: torch.Tensor) -> torch.Tensor:
        if self.indices == [self._last]:
            return x.unsqueeze(0)
        kept = [x if i == self._last else self._kept[i] for i in self.indices]
        return torch.stack(kept) if kept else x.new_empty((0, *x.shape))


def _index(grid: np.ndarray[Any, Any], t: float) -> int:
    nearest = int(np.abs(grid - t).argmin())
    if grid[nearest] != t:
        raise ValueError(
            f"save: {t!r} is not a time of the grid; the nearest is grid[{nearest}] = {float(grid[nearest])!r}"
        )
    return nearest


@contextmanager
def _bar(progress: bool, steps: int, begin: int) -> Iterator[Callable[[], None]]:
    if not progress:
        yield lambda: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=steps, initial=begin, unit="step") as bar:
        yield lambda: bar.update()

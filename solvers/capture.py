"""A run recorded once and replayed with other noise, other states and other grids: a CUDA graph, and on a CPU its image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from halfbridge.kernels import DeviceNoise, backend, combine, philox
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.operators import signed
from halfbridge.solvers.algebra import Combine, Draw, Evaluate
from halfbridge.solvers.runner import check_plan, check_state
from halfbridge.solvers.whole import run_whole

if TYPE_CHECKING:
    from halfbridge.solvers.plan import Plan

__all__ = ["Capture"]


class Capture:
    """`plan` on `field` from states like `x`, every number that a run has kept in memory on x's device.

    On a GPU the whole run is captured as one CUDA graph when this is made, and `replay` launches it: no Python and no launch
    overhead in between. That needs Triton's kernels, and a field that a CUDA graph can hold: fixed shapes, nothing read back
    to the host, and times taken as what they are, 0-dim float64 tensors in x's device memory. On a CPU `replay` runs the same
    operations one by one.

    x: (batch, *shape), gives shape, dtype and device (and the state that is replayed from until another is given). seed:
    an int, needed where the plan draws; noise objects are refused, as their tensors could not change. first: the global index
    of x[0]. No gradients. The result of a replay is the result of `plan.run`, to rounding.
    """

    def __init__(self, plan: Plan, field: Any, x: torch.Tensor, seed: int | None = None, first: int = 0) -> None:
        check_plan(plan, field)
        check_state(x)
        self.plan, self.field = plan, field
        self._x = x.detach().clone()
        self._numbers = _MemoryNumbers(plan, self._x)
        self._numbers.load(plan)
        self._count(seed, first)
        self._graph, self._out = None, None
        if x.is_cuda:
            with torch.no_grad():
                self._graph, self._out = self._record()

    def replay(
        self,
        x: torch.Tensor | None = None,
        *,
        seed: int | None = None,
        first: int | None = None,
        plan: Plan | None = None,
    ) -> torch.Tensor:
        """The run again, from `x` if given, with another seed, first or plan if given; these stay for later replays.

        plan: of an equal solver for the same field, with as many steps, on another grid. Nothing changes where an argument is
        refused.
        """
        if x is not None:
            for name in ("shape", "dtype", "device"):
                if getattr(x, name) != getattr(self._x, name):
                    raise ValueError(
                        f"x has {name} {getattr(x, name)} but the run was captured for {getattr(self._x, name)}; "
                        "capture it again for other states"
                    )
        if plan is not None:
            self._check(plan)
        with torch.no_grad():
            if seed is not None or first is not None:
                self._count(self._seed if seed is None else seed, self._first if first is None else first)
            if plan is not None:
                self._numbers.load(plan)
            if x is not None:
                self._x.copy_(x)
            if self._graph is None:
                return self._run().clone()
            self._graph.replay()
            assert self._out is not None
            return self._out.clone()

    def _run(self) -> torch.Tensor:
        return run_whole(self.plan, self.field, self._x, self._numbers)

    def _record(self) -> tuple[Any, torch.Tensor]:
        if (name := backend(self._x.device)) != "triton":
            raise RuntimeError(
                f"x is on {self._x.device}, where the {name!r} backend runs: it reads numbers back to the host, which a CUDA "
                "graph forbids; install triton (pip install 'halfbridge[gpu]')"
            )
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._x.device):  # on which a graph is captured, whatever device its tensors have
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles kernels and lets libraries allocate, which capturing forbids
                self._run()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream):
                out = self._run()
        return graph, out

    def _check(self, plan: Plan) -> None:
        check_plan(plan, self.field)
        if plan.solver != self.plan.solver:
            raise ValueError(
                f"the captured run is of {self.plan.solver!r} and the new plan of {plan.solver!r}; capture that plan instead"
            )
        if (given := _structure(plan)) != (known := _structure(self.plan)):
            step = next(
                (i for i, (a, b) in enumerate(zip(given, known, strict=False)) if a != b), min(len(given), len(known))
            )
            raise ValueError(
                f"the captured run is {self.plan!r} and the new one {plan!r}; their operations differ from step {step} on, "
                "capture that plan instead"
            )

    def _count(self, seed: int | None, first: int) -> None:
        if self.plan.draws and seed is None:
            raise ValueError(f"seed = None, but the run draws {len(self.plan.draws)} normals; pass an int")
        if callable(seed):
            raise TypeError("seed is a noise object, whose normals a captured run could not make anew; pass an int")
        key = None if seed is None else philox.check_seed(seed)
        self._first, self._seed = philox.check_first(first, len(self._x)), key
        self._numbers.count(self._seed or 0, self._first)


class _MemoryNumbers:
    """The numbers of a run in device memory, where `run_whole` reads them; `load` and `count` overwrite them."""

    def __init__(self, plan: Plan, x: torch.Tensor) -> None:
        flat = list(_numbers(plan))
        self._x, device = x, x.device
        self.table = torch.empty(sum(len(c) for _, _, c in flat), dtype=accumulation(x.dtype), device=device)
        self.times = torch.empty(sum(t is not None for _, t, _ in flat), dtype=torch.float64, device=device)
        self.counters = torch.empty((len(plan.draws), 3), dtype=torch.int64, device=device)
        self._draws = {draw.index: i for i, draw in enumerate(plan.draws)}
        self._at: dict[tuple[int, int], torch.Tensor] = {}
        self._time: dict[tuple[int, int], torch.Tensor] = {}
        used = timed = 0
        for at, t, numbers in flat:
            self._at[at] = self.table[used : used + len(numbers)]
            used += len(numbers)
            if t is not None:
                self._time[at] = self.times[timed]
                timed += 1

    def load(self, plan: Plan) -> None:
        flat = list(_numbers(plan))
        self.table.copy_(torch.tensor([c for _, _, numbers in flat for c in numbers], dtype=torch.float64))
        self.times.copy_(torch.tensor([t for _, t, _ in flat if t is not None], dtype=torch.float64))

    def count(self, seed: int, first: int) -> None:
        rows = [(signed(seed), index, signed(first)) for index in self._draws]
        self.counters.copy_(torch.tensor(rows, dtype=torch.int64).view(-1, 3))

    def time(self, at: tuple[int, int], t: float) -> torch.Tensor:
        return self._time[at]

    def coefficients(self, at: tuple[int, int], given: tuple[float, ...]) -> torch.Tensor:
        return self._at[at][: len(given)]

    def scale(self, at: tuple[int, int], given: float) -> torch.Tensor:
        return self._at[at][-1]

    def fused(self, draw: Draw, scale: torch.Tensor | None = None) -> DeviceNoise:
        scale = self.table.new_ones(()) if scale is None else scale
        return DeviceNoise(scale, self.counters[self._draws[draw.index]])

    def tensor(self, draw: Draw, shape: Sequence[int] | None = None) -> torch.Tensor:
        zero = torch.zeros_like(self._x) if shape is None else self._x.new_zeros(tuple(shape))
        return combine([zero], [0.0], noise=self.fused(draw))


def _numbers(plan: Plan) -> Iterator[tuple[tuple[int, int], float | None, tuple[float, ...]]]:
    """((step, place), time of an evaluation, other numbers) of every operation: coefficients, and the noise's scale last."""
    for i, step in enumerate(plan.program.steps):
        for j, instruction in enumerate(step):
            op = instruction.op
            if isinstance(op, Evaluate):
                yield (i, j), op.t, ()
            elif isinstance(op, Combine):
                yield (i, j), None, (*instruction.coefficients, *((instruction.scale,) if instruction.draw else ()))
            else:
                yield (i, j), None, op.numbers


def _structure(plan: Plan) -> list[tuple[Any, ...]]:
    """What a captured run cannot change: the operations, what they read and write, their draws and counts of numbers."""
    return [
        tuple(
            (
                type(n.op),
                n.out,
                n.sources,
                n.draw and n.draw.index,
                len(n.coefficients),
                len(getattr(n.op, "numbers", ())),
            )
            for n in step
        )
        for step in plan.program.steps
    ]

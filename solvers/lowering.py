"""From a traced run to instructions: names used once are inlined, and every vector gets a register.

A combination is written over one of its inputs when that input dies there, so a run keeps the fewest buffers that a greedy
pass finds. Evaluations are never written to: they belong to whoever made them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from halfbridge.solvers.algebra import Combine, Draw, Evaluate, Op
from halfbridge.solvers.past import Name, Register, leaves, map_past

if TYPE_CHECKING:
    from halfbridge.solvers.plan import Step

__all__ = ["Instruction", "Program", "inline", "lower"]


def inputs(op: Op) -> tuple[str, ...]:
    if isinstance(op, Evaluate):
        return (op.x,)
    return tuple(name for name, _ in op.terms) if isinstance(op, Combine) else op.vectors


def kept(step: Step) -> list[str]:
    """What must exist when the step is over: the state and what the solver remembers."""
    return [step.out, *leaves(step.past, Name)]


def inline(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Steps in which a combination that only one other combination of the same step uses has become part of it.

    Two normals never meet in one combination: a kernel call makes one. States are renamed x1, x2, ... on the way.
    """
    uses: Counter[str] = Counter()
    for step in steps:
        uses.update(name for op in step.ops for name in inputs(op))
        uses.update(kept(step))
    names: dict[str, str] = {}
    result = []
    for step in steps:
        known: dict[str, Combine] = {}
        ops: list[Op] = []
        for op in step.ops:
            if isinstance(op, Combine):
                for name, c in op.terms:
                    inner = known.get(name)
                    if inner is None or uses[name] != 1 or (inner.draw and op.draw and inner.draw != op.draw):
                        continue
                    op = _substitute(op, name, c, inner)
                    ops.remove(inner)
                if uses[op.out] == 0:  # a sum with a normal that the step then dropped
                    continue
                known[op.out] = op
            ops.append(op)
        made = {op.out for op in ops if not isinstance(op, Evaluate)}
        if step.out in made:
            names[step.out] = f"x{step.index + 1}"
        result.append(replace(step, ops=tuple(ops)))
    return tuple(_rename(step, names) for step in result)


def _substitute(op: Combine, name: str, c: float, inner: Combine) -> Combine:
    terms = {n: v for n, v in op.terms if n != name}
    for n, v in inner.terms:
        terms[n] = terms.get(n, 0.0) + c * v
    scale = op.scale + c * inner.scale
    return Combine(op.out, tuple(terms.items()), op.draw or inner.draw, scale)


def _rename(step: Step, names: dict[str, str]) -> Step:
    def new(name: str) -> str:
        return names.get(name, name)

    ops: list[Op] = []
    for op in step.ops:
        if isinstance(op, Evaluate):
            ops.append(replace(op, x=new(op.x)))
        elif isinstance(op, Combine):
            ops.append(replace(op, out=new(op.out), terms=tuple((new(n), c) for n, c in op.terms)))
        else:
            ops.append(replace(op, out=new(op.out), vectors=tuple(new(n) for n in op.vectors)))
    return replace(
        step,
        x=new(step.x),
        out=new(step.out),
        ops=tuple(ops),
        past=map_past(step.past, lambda name: Name(new(name)), Name),
    )


class Instruction(NamedTuple):
    """An operation on registers. `gather` picks its inputs, those of `sources`; `reuse` is the register whose buffer the
    result overwrites (the last register, always empty, for a new buffer); `frees` are the registers that nobody reads
    afterwards.
    """

    op: Op
    out: int
    gather: Callable[[list[Any]], tuple[Any, ...]]
    coefficients: tuple[float, ...] = ()
    draw: Draw | None = None
    scale: float = 0.0
    reuse: int = -1
    frees: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()


def _gather(sources: tuple[int, ...]) -> Callable[[list[Any]], tuple[Any, ...]]:
    if len(sources) > 1:
        return itemgetter(*sources)
    return lambda registers: tuple(registers[r] for r in sources)


@dataclass(frozen=True)
class Program:
    """Instructions a step. After step i `outputs[i]` and `pasts[i]` are the registers kept, `releases[i]` those that
    nobody reads from there on. `peak` counts the tensors alive at once, beside the caller's x."""

    steps: tuple[tuple[Instruction, ...], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    pasts: tuple[Any, ...]
    releases: tuple[tuple[int, ...], ...]
    registers: int
    peak: int


class _Registers:
    """Which register holds which name, which are buffers of the run's own, and how many tensors are alive."""

    def __init__(self) -> None:
        self.of = {"x0": 0}
        self.count = 1
        self.live = self.peak = 0
        self._owned: set[int] = set()
        self._idle: list[int] = []

    def evaluation(self, name: str) -> int:
        self.of[name] = self._new()
        self.peak = max(self.peak, self.live)
        return self.of[name]

    def buffer(self, name: str, dying: list[int]) -> tuple[int, int | None]:
        """(register for the result, the register whose buffer it overwrites); takes that one out of `dying`."""
        reuse = next((r for r in dying if r in self._owned), None)
        if reuse is not None:
            dying.remove(reuse)
        elif self._idle:
            reuse = self._idle.pop()
        out = self._new() if reuse is None else reuse
        self._owned.add(out)
        self.of[name] = out
        self.peak = max(self.peak, self.live)
        return out, reuse

    def release(self, dying: list[int]) -> tuple[int, ...]:
        """Own buffers go idle; the rest is let go."""
        self._idle += [r for r in dying if r in self._owned]
        foreign = tuple(r for r in dying if r not in self._owned)
        self.live -= sum(r != 0 for r in foreign)
        return foreign

    def _new(self) -> int:
        self.count += 1
        self.live += 1
        return self.count - 1


def lower(steps: Sequence[Step]) -> Program:
    dying = _deaths(steps)
    registers = _Registers()
    program, ins, outs, pasts, releases = [], [], [], [], []
    for i, step in enumerate(steps):
        ins.append(registers.of[step.x])
        instructions = []
        for j, op in enumerate(step.ops):
            sources = tuple(registers.of[name] for name in inputs(op))
            dead = [registers.of[name] for name in dying.get((i, j), ()) if name != op.out]
            reuse = None
            if isinstance(op, Evaluate):
                out = registers.evaluation(op.out)
            else:
                out, reuse = registers.buffer(op.out, dead)
            if op.out in dying.get((i, j), ()):  # evaluated and never read
                dead.append(out)
            coefficients = tuple(c for _, c in op.terms) if isinstance(op, Combine) else ()
            draw, scale = (None, 0.0) if isinstance(op, Evaluate) else (op.draw, getattr(op, "scale", 0.0))
            frees = registers.release(dead)
            reuse = -1 if reuse is None else reuse
            gather = _gather(sources)
            instructions.append(Instruction(op, out, gather, coefficients, draw, scale, reuse, frees, sources))
        program.append(tuple(instructions))
        outs.append(registers.of[step.out])
        pasts.append(map_past(step.past, lambda name: Register(registers.of[name]), Name))
        releases.append(registers.release([registers.of[name] for name in dying.get((i, len(step.ops)), ())]))
    return Program(
        tuple(program), tuple(ins), tuple(outs), tuple(pasts), tuple(releases), registers.count + 1, registers.peak
    )


def _deaths(steps: Sequence[Step]) -> dict[tuple[int, int], list[str]]:
    """(step, operation) -> the names read there for the last time; operation len(ops) is the end of the step."""
    last: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for j, op in enumerate(step.ops):
            last.update(dict.fromkeys((*inputs(op), op.out), (i, j)))
        last.update({name: (i, len(step.ops)) for name in kept(step)})
    if steps:
        last.update({name: (len(steps), 0) for name in kept(steps[-1])})
    deaths: dict[tuple[int, int], list[str]] = {}
    for name, place in last.items():
        deaths.setdefault(place, []).append(name)
    return deaths

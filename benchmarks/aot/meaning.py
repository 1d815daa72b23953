"""What a launch means: the global loads and stores of its programs and the turns of their loops, from Triton's own IR.

Masks, loop bounds and conditions are computed for every program from the launch's integer arguments and tables of integers,
so lanes that are masked off do not count. What those do not settle is counted whole or once, and said in `unknown`.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.aot.integers import Value, compute
from benchmarks.aot.ir import Function, Op, bases, behind, parse, walk

POINTERS = re.compile(r"(?:tensor<([\dx]+)x)?!tt\.ptr<(\w+)(?:, \d+)?>")
SIZES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "i8": 1, "i1": 1}
MASK = {"tt.load": 1, "tt.store": 2, "tt.atomic_rmw": 2}  # place of the mask among the operands
MOVES = (*MASK, "tt.atomic_cas")
OPERATIONS = (
    50_000  # of the IR that are evaluated in all, a fraction of a second's; the mean of so many programs stands for all
)


class Traffic(NamedTuple):
    """Of a program: bytes that it moves, and bytes that its threads ask for by loads, by stores, by loads of scalars.

    The threads ask for more where lanes are masked off or have one address, and where a tile has fewer elements than the
    program threads or is one scalar: they all load it. again_loaded, again_stored: what they ask for beyond the first time.
    """

    moved: float = 0
    again_loaded: float = 0
    again_stored: float = 0
    loads: int = 0
    stores: int = 0
    scalar: int = 0

    def plus(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


class Turns(NamedTuple):
    """A loop: its turns each time that it is entered, and what the threads ask for in one turn, loops in it included."""

    count: int
    asked: int


class Meaning(NamedTuple):
    """moved, again_loaded, again_stored: bytes of the mean program. loads, stores, scalar: of the most frequent kind of program,
    as are its loops, in the order of the text.

    branches: those that do something though their other side asks for the same traffic, scalars aside, as (number in the text,
    side): the traffic does not tell on which side of it a path through the machine code goes.
    """

    moved: float
    again_loaded: float
    again_stored: float
    loads: int
    stores: int
    scalar: int
    loops: tuple[Turns, ...]
    unknown: tuple[str, ...]
    branches: tuple[tuple[int, bool], ...]


class Run(NamedTuple):
    """A launch: the kernel, its known arguments, tables by the pointers into them, the values that matter."""

    kernel: Function
    arguments: dict[str, Value]
    tables: dict[str, Value]
    needed: set[str]
    grid: tuple[int, ...]
    threads: int


class Evaluation:
    """One program of a launch, run as far as its traffic goes."""

    def __init__(self, launch: Run, program: Sequence[int]) -> None:
        self.launch, self.program = launch, program
        self.known: dict[str, Value] = dict(launch.arguments)
        self.steps = 0
        self.loops = {id(op): Turns(0, 0) for op in walk(launch.kernel.body) if op.kind == "scf.for"}
        self.unknown: dict[str, None] = {}  # in order, once each
        self.ifs = [id(op) for op in walk(launch.kernel.body) if op.kind == "scf.if"]
        self.branches: dict[tuple[int, bool], None] = {}

    def run(self, body: tuple[Op, ...]) -> Traffic:
        total = Traffic()
        self.steps += len(body)
        for op in body:
            if op.kind == "scf.for":
                total = total.plus(self.loop(op))
            elif op.kind == "scf.if":
                total = total.plus(self.branch(op))
            elif op.kind in MOVES:
                total = total.plus(self.move(op))
                if op.kind == "tt.load" and "%" + op.result in self.launch.needed:
                    self.known["%" + op.result] = self.looked_up(op)
            elif op.kind == "scf.while" or op.kind == "tt.call":
                self.unknown[f"{op.kind} is not followed"] = None
            elif "%" + op.result in self.launch.needed:
                if op.kind in ("tt.get_program_id", "tt.get_num_programs"):
                    axis = "xyz".index(op.text.split()[0])
                    self.known["%" + op.result] = (self.program if op.kind.endswith("id") else self.launch.grid)[axis]
                else:
                    self.known["%" + op.result] = compute(op, self.known)
        return total

    def loop(self, op: Op) -> Traffic:
        variable, *bounds = op.operands[:4]
        start, end, step = (self.known.get(name) for name in bounds)
        if start is None or end is None or step is None:
            self.unknown[f"turns of loop {list(self.loops).index(id(op)) + 1}"] = None
            start, end, step = 0, 1, 1
        total = Traffic()
        turns = range(start, end, step)
        for i in turns:
            self.known[variable] = i
            one = self.run(op.regions[0])
            total = total.plus(one)
            self.loops[id(op)] = Turns(len(turns), one.loads + one.stores)
        return total

    def branch(self, op: Op) -> Traffic:
        condition = self.known.get(op.operands[0])
        sides = (*op.regions, ())[:2]
        if condition is None:
            self.unknown["a branch, of which both sides are counted"] = None
            return self.run(sides[0]).plus(self.run(sides[1]))
        taken, other = sides if condition else sides[::-1]
        aside = Evaluation(self.launch, self.program)
        aside.known = dict(self.known)
        total, instead = self.run(taken), aside.run(other)
        alike = (total.loads - total.scalar, total.stores) == (instead.loads - instead.scalar, instead.stores)
        if alike and any(inner.kind != "scf.yield" for inner in taken):
            self.branches[self.ifs.index(id(op)) + 1, bool(condition)] = None
        return total

    def move(self, op: Op) -> Traffic:
        pointers = POINTERS.search(op.text)
        if pointers is None:
            raise ValueError(f"no pointer type in `{op.kind}{op.text}`; mend `meaning.POINTERS`")
        size, shape = SIZES[pointers[2]], [int(n) for n in (pointers[1] or "1").split("x")]
        elements = int(np.prod(shape))
        place = MASK.get(op.kind)
        mask = self.known.get(op.operands[place]) if place is not None and len(op.operands) > place else 1
        if mask is None:
            self.unknown["a mask, counted as full"] = None
        lanes = np.broadcast_to(True if mask is None else np.asarray(mask) != 0, shape)
        address = self.known.get(op.operands[0])
        places = np.arange(elements).reshape(shape) if address is None else np.broadcast_to(address, shape)
        active = int(np.unique(places[lanes]).size)
        asked = max(elements, self.launch.threads) * size
        again = asked - (active if lanes.all() else int(np.unique(places).size)) * size
        if op.kind != "tt.load":
            return Traffic(active * size, again_stored=again, stores=asked)
        return Traffic(active * size, again_loaded=again, loads=asked, scalar=0 if pointers[1] else asked)

    def looked_up(self, op: Op) -> Value:
        """What a load reads from a table; 0 in lanes that are masked off."""
        table, address = self.launch.tables.get(op.operands[0]), self.known.get(op.operands[0])
        mask = self.known.get(op.operands[1]) if len(op.operands) > 1 else 1
        if table is None or address is None or mask is None:
            return None
        if not isinstance(address, np.ndarray):
            return int(table[address]) if mask else 0
        return np.where(mask, table[np.where(mask, address, 0)], 0)


def meaning(
    ttir: str, numbers: dict[str, int], threads: int, grid: tuple[int, ...], tables: dict[str, Value] | None = None
) -> Meaning:
    """numbers, tables: the launch's integer arguments and arrays of int64 by name (others are not known); threads: of one
    program."""
    kernel = parse(ttir)
    roots: set[str] = set()
    for op in walk(kernel.body):
        if op.kind in MASK:
            roots |= {op.operands[0], *op.operands[MASK[op.kind] : MASK[op.kind] + 1]}
        elif op.kind == "scf.for":
            roots |= set(op.operands[1:4])
        elif op.kind == "scf.if":
            roots |= set(op.operands[:1])
    needed = behind(kernel.body, roots)
    arguments = {f"%{name}": numbers[name] for name in kernel.arguments if name in numbers}
    arguments |= {f"%{name}": 0 for name in kernel.pointers}
    known_tables = {name: tables[base] for name, base in bases(kernel).items() if tables and base in tables}
    grid = (*grid, 1, 1)[:3]
    launch = Run(kernel, arguments, known_tables, needed, grid, threads)
    trial = Evaluation(launch, (0, 0, 0))
    trial.run(kernel.body)
    programs = places(grid, max(4, OPERATIONS // trial.steps))
    total = Traffic()
    kinds: Counter[tuple[Any, ...]] = Counter()
    for program in programs:
        one = Evaluation(launch, program)
        traffic = one.run(kernel.body)
        total = total.plus(traffic)
        kinds[(*traffic[3:], tuple(one.loops.values()), tuple(one.unknown), tuple(one.branches))] += 1
    return Meaning(*(sum / len(programs) for sum in total[:3]), *kinds.most_common(1)[0][0])


def places(grid: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Program ids: all of the grid, or `most` of them, spread by the golden ratio so that they follow no period of it."""
    x, y, z = grid
    count = x * y * z
    step = next(step for step in range(round(0.618 * count) or 1, count + 2) if math.gcd(step, count) == 1)
    chosen = (step * i % count for i in range(min(count, most)))
    return [(n % x, n // x % y, n // (x * y)) for n in chosen]

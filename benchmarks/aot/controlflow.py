"""The common path through a kernel: which instructions a thread executes, and how often.

Machine code says where control can go, not where it goes. What decides: the kernel's loads and stores are known from
Triton's IR (`meaning`), so the common path is the one that makes exactly those, and among such paths the shortest. So a slow
path that nothing is loaded on (the rare arguments of a division) is not on it, nor is what a loop's unrolled copy leaves
over; an early return is not taken.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.aot.code import Instruction

MAX_STATES = 500_000  # of (instruction, bytes so far), which limits the time spent on code with very many branches


class Loop(NamedTuple):
    """Instructions first .. last, which a jump from `last` back to `first` repeats."""

    first: int
    last: int


class Wanted(NamedTuple):
    """Global traffic that a thread of the kernel makes, in bytes: loads between two numbers, as scalars may come by other
    ways, and stores."""

    least: int
    most: int
    stores: int

    def missed_by(self, loads: int, stores: int) -> int:
        return max(self.least - loads, loads - self.most, 0) + abs(stores - self.stores)


class Path(NamedTuple):
    """times[i]: how often a thread executes instruction i. loads, stores: bytes of its global traffic on the way."""

    times: dict[int, int]
    loads: int
    stores: int


def reachable(code: Sequence[Instruction]) -> list[int]:
    """Indices of the instructions that control can reach, without the bodies of functions that are called."""
    seen, todo = set(), [0] if code else []
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo += successors(code, i)
    return sorted(seen)


def successors(code: Sequence[Instruction], i: int) -> list[int]:
    op = code[i]
    after = [i + 1] if i + 1 < len(code) and (op.flow in ("next", "call") or op.conditional) else []
    return after + ([op.target] if op.flow == "jump" else [])


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """The loops in the order of their first instructions, outer ones before those that they hold."""
    last: dict[int, int] = {}
    for i in reachable(code):
        if code[i].flow == "jump" and code[i].target <= i:
            last[code[i].target] = max(i, last.get(code[i].target, i))
    return sorted((Loop(first, end) for first, end in last.items()), key=lambda loop: (loop.first, -loop.last))


def common_path(
    code: Sequence[Instruction], moved: Callable[[str], tuple[int, int]], turns: Sequence[int], wanted: Wanted
) -> Path:
    """The shortest path from the first instruction to an exit, a conditional one too, with the wanted global traffic, or
    else with what is nearest to it.

    moved(op): bytes that a thread loads and stores by one instruction; turns: of each of `loops(code)`.
    """
    found = loops(code)
    weight = [1] * len(code)
    exits: dict[int, set[int]] = defaultdict(set)
    for loop, count in zip(found, turns, strict=True):
        inside = range(loop.first, loop.last + 1)
        for i in inside:
            weight[i] *= count
        # the jump back is replaced by one to where the loop can be left, so that a path runs through the body once
        exits[loop.last] |= {to for i in inside for to in successors(code, i) if to not in inside}
    calls = {i: called(code, op.target) for i, op in enumerate(code) if op.flow == "call"}

    # best[i][bytes loaded, bytes stored]: fewest executed instructions before i, and the instruction before it
    best: dict[int, dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
    best[0][0, 0] = (0, -1)
    ends: dict[tuple[int, int, int], int] = {}
    states = 0
    for i in reachable(code):
        loads, stores = (weight[i] * n for n in moved(code[i].op))
        forward = {to for to in successors(code, i) if to > i} | {to for to in exits[i] if to > i}
        for before, (cost, _) in best[i].items():
            states += 1
            total = (before[0] + loads, before[1] + stores)
            cost += weight[i] * (1 + len(calls.get(i, ())))
            if code[i].flow == "exit":
                ends[(i, *total)] = cost
            for to in forward:
                if total not in best[to] or cost < best[to][total][0]:
                    best[to][total] = (cost, i)
        if states > MAX_STATES:
            raise ValueError(f"more than {MAX_STATES} ways through {len(code)} instructions; split the kernel")
    if not ends:
        raise ValueError("no path leads to the kernel's end; the reader misses a jump")
    at, loads, stores = min(ends, key=lambda e: (wanted.missed_by(*e[1:]), ends[e]))

    times: dict[int, int] = defaultdict(int)
    left = (loads, stores)
    while at >= 0:
        times[at] += weight[at]
        for i in calls.get(at, ()):
            times[i] += weight[at]
        here = moved(code[at].op)
        left = (left[0] - weight[at] * here[0], left[1] - weight[at] * here[1])
        at = best[at][left][1]
    return Path({i: n for i, n in times.items() if n}, loads, stores)


def called(code: Sequence[Instruction], start: int) -> list[int]:
    """The shortest way through a called function, from its first instruction to one that returns."""
    come: dict[int, int] = {start: -1}
    todo = [start]
    for i in todo:  # breadth first: the list grows while it is read
        if code[i].flow == "return" and not code[i].conditional:
            way = []
            while i >= 0:
                way.append(i)
                i = come[i]
            return way[::-1]
        for to in successors(code, i):
            if to not in come:
                come[to] = i
                todo.append(to)
    raise ValueError(f"the function at instruction {start} does not return; the reader misses a jump")

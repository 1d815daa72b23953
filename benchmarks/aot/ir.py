"""Triton's own IR (TTIR) as a tree of operations: whole tiles are loaded and stored, loops have bounds, nothing is unrolled."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

LOCATION = re.compile(r"\s+loc\((?:#\w*|unknown)\)\s*$")
ARGUMENT = re.compile(r"%([\w.]+): (!tt\.ptr)?")
LINE = re.compile(r'^(?:%([\w.]+)(?::\d+)? = )?"?([a-z_]+\.[\w.]+)"?(?![\w.])(.*)$')
DERIVED = ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape")
OPERAND = re.compile(r"%[\w.]+(?:#\d+)?")


class Op(NamedTuple):
    """result = kind text, with its regions. `result` is empty where there is none."""

    result: str
    kind: str
    text: str
    regions: tuple[tuple["Op", ...], ...] = ()

    @property
    def operands(self) -> tuple[str, ...]:
        return tuple(OPERAND.findall(self.text))


class Function(NamedTuple):
    """A kernel: names of its arguments that are not constants, of those that are pointers, and what it does."""

    arguments: tuple[str, ...]
    pointers: tuple[str, ...]
    body: tuple[Op, ...]


def parse(ttir: str) -> Function:
    """The kernel, which is the one public function."""
    lines = iter([LOCATION.sub("", line).strip() for line in ttir.splitlines()])
    for line in lines:
        if line.startswith("tt.func public"):
            found = ARGUMENT.findall(line)
            pointers = tuple(name for name, pointer in found if pointer)
            return Function(tuple(name for name, _ in found), pointers, region(lines)[0])
    raise ValueError("no `tt.func public` in the IR; pass the TTIR of a kernel")


def region(lines: Iterator[str]) -> tuple[tuple[Op, ...], str]:
    """The operations up to the brace that closes the region, and the line with that brace."""
    found: list[Op] = []
    for line in lines:
        if line.startswith("}"):
            return tuple(found), line
        match = LINE.match(line)
        regions: list[tuple[Op, ...]] = []
        if line.endswith("{"):
            inner, end = region(lines)
            regions.append(inner)
            while end.endswith("{"):  # } else {
                inner, end = region(lines)
                regions.append(inner)
        if match:
            found.append(Op(match[1] or "", match[2], match[3], tuple(regions)))
    raise ValueError("the IR ends within a region; pass all of it")


def walk(body: tuple[Op, ...]) -> Iterator[Op]:
    """Every operation, those of inner regions after the one that holds them."""
    for op in body:
        yield op
        for inner in op.regions:
            yield from walk(inner)


def bases(kernel: Function) -> dict[str, str]:
    """The pointer argument from which each pointer value was made."""
    found = {"%" + name: name for name in kernel.pointers}
    for op in walk(kernel.body):
        if op.kind in DERIVED and op.operands[0] in found:
            found["%" + op.result] = found[op.operands[0]]
    return found


def behind(body: tuple[Op, ...], roots: set[str]) -> set[str]:
    """Names of the values that those depend on, themselves included; what a loop carries is not followed.

    Regions beside each other use names again, for other values: what a name depends on is what any of them does.
    """
    sources: dict[str, set[str]] = defaultdict(set)
    for op in walk(body):
        if op.kind == "scf.for":
            variable, *bounds = op.operands[:4]
            sources[variable] |= set(bounds)
        elif op.result and not op.regions:
            sources["%" + op.result] |= set(op.operands)
    found, todo = set(roots), list(roots)
    while todo:
        fresh = sources[todo.pop()] - found
        found |= fresh
        todo += fresh
    return found

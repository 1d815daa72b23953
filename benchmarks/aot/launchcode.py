"""One launch, read: what a thread of it executes, what it takes, what it moves."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.aot import amdgcn, sass
from benchmarks.aot.capture import Launch
from benchmarks.aot.code import Access, Instruction, Resources
from benchmarks.aot.controlflow import Loop, Path, Wanted, common_path, loops
from benchmarks.aot.meaning import Meaning, Turns, meaning
from benchmarks.aot.occupancy import occupancy
from benchmarks.aot.targets import Target

READERS: dict[str, Any] = {"cuda": sass, "hip": amdgcn}
WIDE = 16  # bytes a thread moves at once at best
LOOKED_AT = {
    (
        "ema_kernel",
        1,
        True,
    ): "what begins and ends on 16 bytes; the other side moves each element, by more instructions",
}  # (kernel, branch, side taken): why the shorter of two sides that ask for the same traffic is the one taken
MULTIPLIER = (str(0xD2511F53), str(0xD2511F53 - (1 << 32)))  # Philox's, as unsigned and signed words


class LaunchCode(NamedTuple):
    """Counts are of one thread on the common path. moved: bytes of device memory of the mean program.

    asked: bytes of device memory that the threads of the mean program ask for, each once; narrow: those by accesses of less than
    `WIDE`. float64: the instructions of that type anywhere in the code, with how often they are executed. double: it is given
    float64 data. philox: it draws random words. doubts: where path, loops or traffic were not settled.
    """

    kernel: str
    programs: int
    threads: int
    resources: Resources
    occupancy: float
    ops: Counter[str]
    accesses: Counter[Access]
    slots: Counter[str]
    float64: Counter[str]
    barriers: int
    moved: float
    asked: float
    narrow: float
    double: bool
    philox: bool
    doubts: tuple[str, ...]

    @property
    def instructions(self) -> int:
        return self.ops.total()


def read(launch: Launch, target: Target) -> LaunchCode:
    reader, compiled = READERS[target.backend], launch.compiled
    text = sass.disassemble(compiled.asm["cubin"]) if target.backend == "cuda" else compiled.asm["amdgcn"]
    threads = compiled.metadata.num_warps * target.lanes
    ttir = compiled.asm["ttir"]
    tables = {name: table.flatten().numpy() for name, table in launch.tables.items()}
    meant = meaning(ttir, launch.numbers, threads, launch.grid, tables)
    code = reader.instructions(text)
    path, settled = executed(code, moved_by(reader), meant, threads)
    ops = Counter[str]()
    for i, times in path.times.items():
        ops[code[i].op] += times
    accesses, slots = Counter[Access](), Counter[str]()
    for op, times in ops.items():
        if (found := reader.access(op)) is not None:
            accesses[found] += times
        for pipe, n in reader.pipes(op).items():
            slots[pipe] += n * times
    present = sorted({op.op for op in code})
    resources = reader.resources(text, compiled.metadata.shared)
    doubts = meant.unknown + tuple(
        f"branch {number}, {'taken' if side else 'not taken'}, of which the shorter side is counted"
        for number, side in meant.branches
        if (launch.kernel, number, side) not in LOOKED_AT
    )
    if not settled:
        doubts += ("the code's global traffic is not that of the kernel's IR",)
    elsewhere = max(0, meant.loads - path.loads * threads)  # scalars that come by other ways
    loads = once(accesses, False, threads, meant.again_loaded - elsewhere)
    stores = once(accesses, True, threads, meant.again_stored)
    return LaunchCode(
        kernel=launch.kernel,
        programs=launch.programs,
        threads=threads,
        resources=resources,
        occupancy=occupancy(target, resources, compiled.metadata.num_warps),
        ops=ops,
        accesses=accesses,
        slots=slots,
        float64=Counter({op: ops[op] for op in present if reader.is_float64(op)}),
        barriers=sum(times for op, times in ops.items() if reader.is_barrier(op)),
        moved=meant.moved,
        asked=loads[0] + stores[0],
        narrow=loads[1] + stores[1],
        double="!tt.ptr<f64>" in ttir,
        philox=any(word in ttir for word in MULTIPLIER),
        doubts=doubts,
    )


def once(accesses: Counter[Access], write: bool, threads: int, again: float) -> tuple[float, float]:
    """(all, narrow) bytes that a program's global loads or stores ask for, less what is asked for again, which is narrow."""
    found = {a.bytes: n for a, n in accesses.items() if a.space == "global" and a.write == write}
    asked = threads * sum(bytes * n for bytes, n in found.items())
    narrow = threads * sum(bytes * n for bytes, n in found.items() if bytes < WIDE)
    again = min(max(again, 0.0), narrow)
    return asked - again, narrow - again


def moved_by(reader: Any) -> Callable[[str], tuple[int, int]]:
    """Bytes of global memory that a thread loads and stores by an instruction."""

    def moved(op: str) -> tuple[int, int]:
        found = reader.access(op)
        if found is None or found.space != "global":
            return 0, 0
        return (0, found.bytes) if found.write else (found.bytes, 0)

    return moved


def executed(
    code: Sequence[Instruction], moved: Callable[[str], tuple[int, int]], meant: Meaning, threads: int
) -> tuple[Path, bool]:
    """The common path, and whether its traffic is what the kernel means."""
    most = meant.loads // threads
    wanted = Wanted(most - meant.scalar // threads, most, meant.stores // threads)
    found = loops(code)
    paths = [
        common_path(code, moved, turns(code, moved, found, meant.loops, ahead, threads), wanted) for ahead in (0, 1)
    ]  # with and without loads that were moved a turn ahead
    path = min(paths, key=lambda p: wanted.missed_by(p.loads, p.stores))
    return path, wanted.missed_by(path.loads, path.stores) == 0


def turns(
    code: Sequence[Instruction], moved: Callable[[str], tuple[int, int]], found: Sequence[Loop], meant: Sequence[Turns],
    ahead: int, threads: int,
) -> list[int]:  # fmt: skip
    """Turns of each machine loop. Compilers unroll: a loop whose body moves n times what a turn of the kernel's loop moves
    has n turns in one, and later loops take what is left. As many loops as the kernel has are paired in order."""
    result, left, k = [], [max(0, loop.count - ahead) for loop in meant], 0
    paired = len(found) == len(meant)
    for number, loop in enumerate(found):
        if paired:
            k = number
        elif k >= len(meant):
            result.append(1)
            continue
        inner = {i for other in found if other != loop and loop.first <= other.first <= other.last <= loop.last
                 for i in range(other.first, other.last + 1)}  # fmt: skip
        body = sum(sum(moved(code[i].op)) for i in range(loop.first, loop.last + 1) if i not in inner)
        one = meant[k].asked // threads
        copies = body // one if one and not inner and body >= one and body % one == 0 else 1
        count = left[k] // copies
        result.append(count)
        left[k] -= count * copies
        if not paired and left[k] == 0:
            k += 1
    return result

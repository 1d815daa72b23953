"""The rows as a page of Markdown."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from benchmarks.aot.analysis import Row
from benchmarks.aot.launchcode import LaunchCode
from benchmarks.aot.targets import TARGETS

HEADINGS = (
    "case", "GPU", "registers", "occupancy", "spills B", "loads", "stores", "shared B", "instructions", "bytes", "minimum",
    "bound by", "10^9 elements/s", "arithmetic / memory",
)  # fmt: skip

INTRODUCTION = """\
# What the Triton kernels compile to

Written by `python -m benchmarks.aot`; no GPU ran. The real launchers were called on CPU tensors under a driver that compiles,
and the numbers below were read from the machine code of each launch. What a GPU really does is for `python -m
benchmarks.kernels` on that GPU.

- *Counts* are an element of the state, summed over a kernel's launches: *instructions* that a thread executes on the common
  path, *bytes* of device memory that loads and stores of full tiles move, the *minimum* that any implementation moves, bytes
  through *shared* memory. Registers, occupancy, spills and widths (bits of each global access and how many a thread makes) are
  those of the launch that executes most.
- The *common path* is the shortest one through the code that makes the loads and stores which Triton's IR asks for, with loops
  as often as the arguments say. Slow paths of float64 division and square root, for arguments that a normal's words cannot
  give, are not on it; their fast paths are.
- *Bound by*: the resource that needs longest for an element, at the peak rates of the table. *Arithmetic / memory* is the time
  of the busiest pipe over that of device memory: below 1 arithmetic can hide behind memory, and the kernel is as fast as a copy
  of its bytes. Latencies, caches and launch overhead are not in this model.
"""


BEYOND = "; a separate pass for the noise would execute the same and also store and read it."


def page(rows: Iterable[Row], provenance: str) -> str:
    parts = [INTRODUCTION, f"{provenance}\n", gpus()]
    for kernel, of_kernel in groupby(rows, key=lambda row: row.case.kernel):
        parts.append(section(kernel, list(of_kernel)))
    return "\n".join(parts)


def gpus() -> str:
    lines = ["## GPUs", "", *header(("GPU", "target", "units", "GHz", "TB/s", "results a clock and unit"))]
    for t in TARGETS:
        rates = ", ".join(f"{pipe} {rate:g}" for pipe, rate in t.rates.items())
        lines.append(line((t.gpu, t.name, t.units, f"{t.clock / 1e9:.2f}", f"{t.bandwidth / 1e12:.2f}", rates)))
    return "\n".join([*lines, "", "Sources, and which of them are assumed, are in `benchmarks/aot/targets.py`.", ""])


def section(kernel: str, rows: Sequence[Row]) -> str:
    lines, said = [f"## {kernel}", "", *header(HEADINGS)], []
    for label, of_case in groupby(rows, key=lambda row: row.case.label):
        case = list(of_case)
        lines += [line((label if i == 0 else "", *cells(row))) for i, row in enumerate(case)]
        said += [f"- {label}: {remark}" for remark in remarks(case)]
    return "\n".join([*lines, "", *said, ""] if said else [*lines, ""])


def cells(row: Row) -> tuple[object, ...]:
    code = row.heaviest
    taken = (
        row.target.gpu,
        code.resources.registers,
        f"{code.occupancy:.2f}",
        max(c.resources.stack for c in row.launches),
    )
    if row.doubts:
        return (*taken, *("?",) * 5, f"{row.minimum:.2f}", *("?",) * 3)
    pipe, share = row.bound.arithmetic
    return (
        *taken, widths(code, False), widths(code, True), f"{row.shared:.3g}", f"{row.instructions:.1f}", f"{row.moved:.2f}",
        f"{row.minimum:.2f}", row.bound.by, f"{row.bound.rate / 1e9:.0f}", f"{share:.2f} ({pipe})",
    )  # fmt: skip


def widths(code: LaunchCode, write: bool) -> str:
    found = sorted((a.bytes, n) for a, n in code.accesses.items() if a.space == "global" and a.write == write)
    return ", ".join(f"{n}x{bytes * 8}" for bytes, n in found) or "none"


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the table of a case means: launches, arithmetic against memory, what was not settled."""
    remarks = []
    launches = rows[0].launches
    if len(launches) > 1:
        remarks.append("launches " + ", ".join(f"`{c.kernel}` of {c.programs} programs" for c in launches) + ".")
    doubts = sorted({doubt for row in rows for doubt in row.doubts})
    if doubts:
        return [*remarks, "the path depends on data: " + "; ".join(doubts) + "."]
    hidden = [row for row in rows if row.bound.by == "memory"]
    over = ", ".join(f"{r.target.gpu} ({r.bound.arithmetic[1]:.2f} of it)" for r in rows if r not in hidden)
    if rows[0].philox and not over:
        remarks.append("all arithmetic, noise included, stays below the memory time on every GPU.")
    elif rows[0].philox:
        fused = widths(rows[0].heaviest, False) != "none"
        remarks.append(f"arithmetic, mostly noise, takes longer than memory on {over}" + (BEYOND if fused else "."))
    elif over:
        remarks.append(f"arithmetic takes longer than memory on {over}.")
    if any(row.float64 for row in rows):
        remarks.append(
            "float64 instructions without float64 data on " + names([row for row in rows if row.float64]) + "."
        )
    return remarks


def names(rows: Sequence[Row]) -> str:
    return ", ".join(row.target.gpu for row in rows)


def header(names: Sequence[str]) -> list[str]:
    return [line(names), line(["---"] * len(names))]


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"

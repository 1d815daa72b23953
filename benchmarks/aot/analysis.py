"""Rows: one for each case and GPU."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks.aot.capture import compiling
from benchmarks.aot.cases import Case
from benchmarks.aot.launchcode import LaunchCode, read
from benchmarks.aot.roofline import Bound, bound
from benchmarks.aot.targets import TARGETS, Target


class Row(NamedTuple):
    """A case on a GPU, all of its launches together; counts and bytes are an element of the state.

    heaviest: the launch that executes most; its registers, occupancy and widths are what the report shows.
    narrow: share of what is loaded and stored in global memory, masked lanes included and each byte once, that does not go
    through accesses of 16 bytes a thread or more.
    """

    case: Case
    target: Target
    launches: tuple[LaunchCode, ...]
    heaviest: LaunchCode
    instructions: float
    moved: float
    minimum: float
    shared: float
    narrow: float
    bound: Bound

    @property
    def float64(self) -> int:
        """Float64 instructions in launches that are given no float64 data, executed or not."""
        return sum(len(code.float64) for code in self.launches if not code.double)

    @property
    def philox(self) -> bool:
        return any(code.philox for code in self.launches)

    @property
    def doubts(self) -> tuple[str, ...]:
        return tuple(f"{code.kernel}: {doubt}" for code in self.launches for doubt in code.doubts)

    def flat(self) -> dict[str, Any]:
        """For JSON."""
        pipe, share = self.bound.arithmetic
        return {
            "kernel": self.case.kernel, "case": self.case.label, "target": self.target.name, "gpu": self.target.gpu,
            "elements": self.case.elements, "instructions": self.instructions, "bytes": self.moved,
            "minimum_bytes": self.minimum, "shared_bytes": self.shared, "narrow_share": self.narrow,
            "float64_in_float32": self.float64, "philox": self.philox, "bound": self.bound.by,
            "elements_per_second": self.bound.rate, "busiest_pipe": pipe, "pipe_over_memory": share,
            "seconds_by_resource": self.bound.times, "doubts": self.doubts,
            "launches": [
                {
                    "kernel": code.kernel, "programs": code.programs, "threads": code.threads, **code.resources._asdict(),
                    "occupancy": code.occupancy, "instructions": code.instructions, "bytes": code.moved,
                    "barriers": code.barriers, "slots": dict(sorted(code.slots.items())), "ops": dict(sorted(code.ops.items())),
                    "accesses": [{**access._asdict(), "times": n} for access, n in sorted(code.accesses.items())],
                }
                for code in self.launches
            ],
        }  # fmt: skip


def rows(cases: Iterable[Case], targets: Iterable[Target] = TARGETS) -> Iterator[Row]:
    for case in cases:
        for target in targets:
            yield analysed(case, target)


def analysed(case: Case, target: Target) -> Row:
    with compiling(target) as done:
        case.run()
    if not done:
        raise RuntimeError(f"the case {case.kernel} {case.label!r} launched no Triton kernel; call the launcher itself")
    codes = tuple(read(launch, target) for launch in done)
    slots, shared = Counter[str](), 0
    for code in codes:
        for pipe, n in code.slots.items():
            slots[pipe] += n * code.programs * code.threads
        for access, n in code.accesses.items():
            shared += access.bytes * n * code.programs * code.threads if access.space == "shared" else 0
    moved = sum(code.moved * code.programs for code in codes) / case.elements
    return Row(
        case, target, codes,
        max(codes, key=lambda code: code.instructions * code.programs * code.threads),
        sum(code.instructions * code.programs * code.threads for code in codes) / case.elements,
        moved, case.minimum_bytes / case.elements,
        shared / case.elements,
        sum(code.narrow * code.programs for code in codes) / max(1, sum(code.asked * code.programs for code in codes)),
        bound(target, moved, {pipe: n / case.elements for pipe, n in slots.items()}),
    )  # fmt: skip

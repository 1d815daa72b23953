"""`python tests/aot_rows.py FILE`: compiles what tests/test_aot.py asserts on, and writes it as JSON.

A process of its own, as the tests' process has Triton interpret kernels.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.aot.analysis import analysed
from benchmarks.aot.cases import BY_DATA, Case, collected
from benchmarks.aot.targets import A100, B200, H100, MI300X, TARGETS, Target
from benchmarks.case import KERNELS
from halfbridge.kernels.gpu.combine import combine_triton
from halfbridge.kernels.gpu.ema_update import ema_update_triton

N = 1 << 20


@triton.jit
def double_in_between(out, x, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, (tl.load(x + i).to(tl.float64) * 0.1).to(tl.float32))


@triton.jit
def reads_twice(out, x, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) + tl.load(x + (i ^ 4)))


@triton.jit
def loops(out, x, turns, n, BLOCK: tl.constexpr):
    """out[program] = sums of a program's turns * BLOCK elements."""
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(turns):
        i = (tl.program_id(0) * turns + turn) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), total)


@triton.jit
def half_masked(out, x, n, BLOCK: tl.constexpr):
    """The first half of every block."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = (tl.arange(0, BLOCK) < BLOCK // 2) & (i < n)
    tl.store(out + i, tl.load(x + i, mask=mask), mask=mask)


@triton.jit
def works_if(out, x, flag, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i)
    if flag > 0:
        for _ in tl.static_range(60):
            v = v * v + 0.5
    tl.store(out + i, v)


def sabotaged() -> Iterator[Case]:
    """What the analysis must not call good."""
    x, out = torch.empty(256, N // 256), torch.empty(256, N // 256)
    shifted = torch.empty(N + 1)[1:].view(256, -1)
    yield Case("sabotaged", "misaligned", partial(combine_triton, [shifted, x], [1.0, 1.0], None, out), N, 12 * N)
    yield Case("sabotaged", "float64", partial(double_in_between[(N // 1024,)], out, x, BLOCK=1024), N, 8 * N)
    yield Case("sabotaged", "reads twice", partial(reads_twice[(N // 1024,)], out, x, BLOCK=1024), N, 8 * N)
    run = partial(half_masked[(N // 1024,)], shifted, x, N, BLOCK=1024)
    yield Case("sabotaged", "narrow stores, half masked", run, N // 2, 4 * N)
    for flag in (0, 5):
        run = partial(works_if[(N // 1024,)], out, x, flag, BLOCK=1024)
        yield Case("sabotaged", f"flag {flag}", run, N, 8 * N)
    averages, parameters = [torch.empty(N + 1)[1:]], [torch.empty(N)]
    run = partial(ema_update_triton, [averages], parameters, [0.5], {})
    yield Case("sabotaged", "misaligned averages", run, N, 12 * N)
    for turns in (1, 7, 64):
        run = partial(loops[(N // 1024 // turns,)], out, x, turns, N, BLOCK=1024)
        yield Case("sabotaged", f"{turns} turns", run, N // 1024 // turns * turns * 1024, 0)


def spilling() -> Case:
    """64 elements a thread do not fit in 32 registers, a limit that NVIDIA's compiler takes."""
    x, out = torch.empty(N), torch.empty(N)
    return Case("sabotaged", "spills", partial(reads_twice[(N // 8192,)], out, x, BLOCK=8192, maxnreg=32), N, 12 * N)


def chosen(kernel: str, own: list[Case]) -> Iterator[tuple[Case, tuple[Target, ...]]]:
    """A kernel's first float32 case, with noise if it has any, for every target; bfloat16 for one of each vendor, float64 for
    one. One case of a kernel that is judged by less."""
    if kernel in BY_DATA:
        yield own[0], (H100, MI300X)
        return
    for dtype, targets in (("float32", TARGETS), ("bfloat16", (H100, MI300X)), ("float64", (H100,))):
        fitting = [case for case in own if dtype in case.label]
        noisy = [case for case in fitting if "noise" in case.label]
        yield from ((case, targets) for case in (noisy or fitting)[:1])
    if own and not any("float32" in case.label for case in own):
        yield own[0], TARGETS
    if kernel == "combine":
        by_label = {case.label: case for case in own}
        yield by_label["float32, 2 inputs"], (A100, B200)
        yield by_label["float32, 6 inputs, noise"], (H100, MI300X)
        yield by_label["float32, 2 inputs, noise, samples of 1023"], (H100,)
        yield by_label["float32, 2 inputs, noise, numbers in memory"], (H100,)


def rows_of(kernel: str) -> list[dict[str, Any]]:
    """Of one kernel; where it cannot be compiled, a row that says why, so that the others are still tested."""
    try:
        pairs = chosen(kernel, collected([kernel]))
        return [analysed(case, target).flat() for case, targets in pairs for target in targets]
    except Exception:
        return [{"kernel": kernel, "case": "", "target": "", "failure": traceback.format_exc()}]


if __name__ == "__main__":
    flat = [row for kernel in KERNELS for row in rows_of(kernel)]
    flat += [analysed(case, target).flat() for case in sabotaged() for target in (H100, MI300X)]
    flat += [analysed(spilling(), H100).flat()]
    Path(sys.argv[1]).write_text(json.dumps(flat), encoding="utf-8")

"""`python -m benchmarks.triad`: the bandwidth of out = x + alpha y (STREAM's triad), the floor for kernels that only stream.

One convention: an element counts as its two reads and one write, 12 bytes in float32 and 24 in float64. What the
processor reads of `out` before it overwrites it (write allocation) is not counted, here or in any row that is compared
with this. The loop is torch's own `add`, into memory that exists. Rows: dtype, elements, threads, milliseconds (best and
median), GB/s of the best.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.pairs import provenance

BUDGET = 1.0  # seconds a row


class Triad(NamedTuple):
    dtype: torch.dtype
    elements: int
    threads: int
    best_ms: float
    median_ms: float
    gigabytes_per_second: float


def triad(elements: int, dtype: torch.dtype) -> Callable[[], Any]:
    """One triad over that many elements, as a function without arguments."""
    x, y, out = (torch.ones(elements, dtype=dtype) for _ in range(3))
    return lambda: torch.add(x, y, alpha=0.5, out=out)


def streamed(elements: int, dtype: torch.dtype, tensors: int = 3) -> int:
    """Bytes that reading and writing so many tensors in all moves."""
    return tensors * elements * dtype.itemsize


def measure(elements: int, dtype: torch.dtype, threads: int) -> Triad:
    """The best of as many triads as a second holds (at least 10), after two that are not counted."""
    with on_threads(threads):
        run, times = triad(elements, dtype), []
        run()
        run()
        begin = time.perf_counter()
        while len(times) < 10 or time.perf_counter() - begin < BUDGET:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    best, median = min(times), sorted(times)[len(times) // 2]
    return Triad(dtype, elements, threads, best * 1e3, median * 1e3, streamed(elements, dtype) / best / 1e9)


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """torch on that many threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_counts() -> list[int]:
    """One, and as many as torch uses here."""
    return sorted({1, torch.get_num_threads()})


def main() -> None:
    print(provenance())
    print(f"{'dtype':10s}{'elements':>10s} thr    best ms  median ms     GB/s")
    for dtype in (torch.float32, torch.float64):
        for elements in (10_000, 100_000, 1_000_000, 10_000_000):
            for threads in thread_counts():
                row = measure(elements, dtype, threads)
                name = str(dtype).removeprefix("torch.")
                print(
                    f"{name:10s}{elements:10d} {threads:3d} {row.best_ms:10.4f} {row.median_ms:10.4f} "
                    f"{row.gigabytes_per_second:8.1f}"
                )


if __name__ == "__main__":
    main()

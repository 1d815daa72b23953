"""`python -m benchmarks.normal`: counter-based normals against torch.randn, both into fresh memory and in place.

Rows: backend, shape, threads, milliseconds (medians), the ratio of paired turns with its 20 and 80 % quantiles, and the
largest error against the float64 normals of the same counters. A backend that errs by more than 1e-6 is not timed.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, refuse_above
from benchmarks.pairs import interleaved, provenance
from halfbridge.kernels import normal, use
from halfbridge.kernels.dispatch import available

ALLOWED = 1e-6
FIRST_CALL = """
import time, torch
import halfbridge.kernels as k
start = time.perf_counter()
with k.use({name!r}): k.normal((1, 2), 0)
print(time.perf_counter() - start)
"""


def largest_error(name: str, shape: tuple[int, ...]) -> float:
    with use(name):
        narrow = normal(shape, 5)
    with use("reference"):
        exact = normal(shape, 5, dtype=torch.float64)
    return float((narrow.double() - exact).abs().max())


def first_call(name: str) -> float:
    """Seconds of the first normal in a fresh process, imports of torch and halfbridge not counted."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL.format(name=name)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def peer(out: torch.Tensor) -> torch.Tensor:
    """What one writes without it; a function of Python, as torch.compile leaves a method of a tensor as it is."""
    return out.normal_()


def cases(device: str) -> Iterator[Case]:
    """Float32 normals, into memory that is there; a peer that cannot be told where a sample stands in the run."""
    for shape in ((1, 2), (64, 3072), (1000, 10_000)):
        out, other = torch.empty(shape, device=device), torch.empty(shape, device=device)
        with use("reference"):
            exact = normal(shape, 5, dtype=torch.float64, device=device)
        error = float((normal(shape, 5, device=device).double() - exact).abs().max())
        refuse_above(ALLOWED if device == "cpu" else 2e-6, error, f"normal at {shape}")
        ours = partial(normal, shape, 5, out=out, device=device)
        yield Case(str(shape), ours, partial(peer, other), out.nbytes, error, "absolute", "normal")


def aot_cases() -> Iterator[tuple[str, Callable[[], Any], int, int]]:
    """(label, launch, elements, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.normal import fill_triton

    for dtype, size in ((torch.float32, 4096), (torch.float64, 4096), (torch.float32, 1023)):
        out = torch.empty(1, 256, size, dtype=dtype)
        label = f"{str(dtype)[6:]}" + (f", samples of {size}" if size % 4 else "")
        yield label, partial(fill_triton, out, 3, [1], 0, 0), out.numel(), out.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--turns", type=int, default=11)
    arguments = parser.parse_args()
    n, cores = arguments.elements, torch.get_num_threads()
    print(provenance())
    print(f"{'backend':10s}{'shape':>16s} thr  memory    ours ms   randn ms    ratio  [20 %, 80 %]   error")
    for name in available():
        for shape in ((n // 1000, 1000), (1, n), (n // 2, 2)):
            error = largest_error(name, shape)
            if error > ALLOWED:
                raise RuntimeError(
                    f"{name} errs by {error:.2g} at {shape} (allowed: {ALLOWED:.0e}); mend it, then time it"
                )
            for threads in sorted({1, cores}):
                torch.set_num_threads(threads)
                out = torch.empty(shape)
                with use(name):
                    fresh = interleaved(lambda s=shape: normal(s, 5), lambda s=shape: torch.randn(s), arguments.turns)  # type: ignore[misc]
                    inplace = interleaved(
                        lambda s=shape, o=out: normal(s, 5, out=o),  # type: ignore[misc]
                        lambda o=out: o.normal_(),  # type: ignore[misc]
                        arguments.turns,
                    )
                for memory, pair in (("fresh", fresh), ("reused", inplace)):
                    print(f"{name:10s}{shape!s:>16s} {threads:3d}  {memory:6s} {pair.row()}   {error:.1e}")
                torch.set_num_threads(cores)
    for name in available():
        print(f"first call in a fresh process, {name}: {first_call(name):.2f} s")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.mixture_field`: the noise of data points seen through noise, against torch.cdist, softmax and a product.

Rows: samples x components x d, milliseconds (medians), the ratio of paired turns with its 20 and 80 % quantiles, the largest
error relative to the largest entry, against sums of differences in float64, and MB that either adds to the peak of memory
(torch's n k numbers; ours some blocks that neither n nor k decides). A result off by more than 1e-4 is not timed. The kernel is
bound by arithmetic, not by its bytes: an element of `aot_cases` is one coordinate of one pair of sample and component.
"""

import math
import resource
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, load_backend, refuse_above
from benchmarks.pairs import interleaved, provenance
from halfbridge.kernels import mixture_field, normal
from halfbridge.kernels.mixture_reference import Components

ALLOWED = 1e-4
SHAPES = {
    "cpu": [(256, 1797, 64), (1024, 4096, 2), (16, 10000, 784)],
    "cuda": [(64, 60000, 3072), (256, 60000, 784), (1024, 4096, 32), (4096, 60000, 2)],
}


def plain(x: Tensor, means: Tensor, sigma: float) -> Tensor:
    """What one writes without it."""
    weights = torch.softmax(torch.cdist(x, means).square() / (-2 * sigma**2), dim=1)
    return (x - weights @ means) / sigma


def exact(x: Tensor, means: Tensor, sigma: float) -> Tensor:
    """The first four samples from their differences to the means, in float64."""
    rows = []
    for row in x[:4].double():
        y = row - means.double()
        rows.append(torch.softmax(y.square().sum(1) / (-2 * sigma**2), dim=0) @ y / sigma)
    return torch.stack(rows)


def cases(device: str) -> Iterator[Case]:
    """Samples near data points; float64 on a CPU, whose path computes in it; bytes: the samples, the means, the result."""
    for n, k, d in SHAPES[device]:
        for dtype in (torch.float64,) if device == "cpu" else (torch.float32, torch.float64):
            sigma = d**0.5 / 4  # noise under which a few components share the weight
            means = normal((k, d), 1, dtype=dtype, device=device)
            x = means[:n] + sigma * normal((n, d), 2, dtype=dtype, device=device)
            logs = torch.full((k,), -math.log(k), dtype=torch.float64, device=device)
            reach = float(means.norm(dim=1).max())
            ours = partial(mixture_field, x, means, logs, sigma**2, 1 / sigma, reach=reach)
            error = off(ours(), exact(x, means, sigma))
            refuse_above(ALLOWED, error, f"mixture_field at {(n, k, d)}, {dtype}")
            peer, moved = partial(plain, x, means, sigma), means.nbytes + 2 * x.nbytes
            label = f"{n} x {k} x {d} {str(dtype)[6:]}"
            yield Case(label, ours, peer, moved, error, "of the largest", "mixture_field", dtype)


def off(got: Tensor, wide: Tensor) -> float:
    return float((got[: len(wide)] - wide).abs().max() / wide.abs().max())


def aot_cases() -> Iterator[tuple[str, Callable[[], Any], int, int]]:
    """(label, launch, coordinates of pairs, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.mixture_field import mixture_field_triton

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for n, k, d in ((64, 60000, 3072), (4096, 60000, 16), (4096, 60000, 2)):
            x, means, logs = torch.empty(n, d, dtype=dtype), torch.empty(k, d, dtype=dtype), torch.zeros(k)
            for view, gain, offset in (("noise", 2.0, 0.0), ("data", 0.0, 1.0)):
                components = Components(means, logs, 0.25, gain, 1.0, offset, 60.0)
                run = partial(mixture_field_triton, x, components, True, False)
                yield f"{view}, {n} x {k} x {d} {str(dtype)[6:]}", run, n * k * d, means.nbytes + 2 * x.nbytes


def megabytes(call: Callable[[], Any], device: str) -> float:
    """What a call adds to the peak of memory; on a CPU to the peak of the process so far, so the smaller call goes first."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


def main(device: str = "cuda" if torch.cuda.is_available() else "cpu") -> None:
    print(provenance())
    print(f"{'n x k x d':>26s}    ours ms   torch ms    ratio  [20 %, 80 %]     error       MB  torch MB")
    load_backend(device)
    for case in cases(device):
        memory = [megabytes(call, device) for call in (case.ours, case.peer)]
        pair = interleaved(case.ours, case.peer, 11)
        print(f"{case.label:>26s} {pair.row()}   {case.error:.1e} {memory[0]:8.0f} {memory[1]:8.0f}")


if __name__ == "__main__":
    main()

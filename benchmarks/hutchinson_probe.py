"""`python -m benchmarks.hutchinson_probe`: counter-based signs against torch's own random signs.

Rows: shape, dtype, milliseconds (medians), the ratio of paired turns with its 20 and 80 % quantiles. Signs that are not the
reference's are not timed.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.case import Case, refuse_above, show
from halfbridge.kernels import hutchinson_probe, use


def aot_cases() -> Iterator[tuple[str, Callable[[], object], int, int]]:
    """(label, launch, elements, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.hutchinson_probe import hutchinson_probe_triton

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in ((64, 3072), (64, 3070), (65536, 12), (65536, 2)):
            out = torch.empty((1, *shape), dtype=dtype)
            label = f"samples of {shape[1]}, {str(dtype)[6:]}"
            yield label, lambda out=out: hutchinson_probe_triton(out, 3, [1], 0, 0), out.numel(), out.nbytes


def peer(out: torch.Tensor) -> torch.Tensor:
    """What one writes without it."""
    return out.bernoulli_(0.5).mul_(2).sub_(1)


def cases(device: str) -> Iterator[Case]:
    """Into memory that exists; the error is 0 or there is no case."""
    for shape, dtype in (
        ((64, 64), torch.float32),
        ((64, 3072), torch.float32),
        ((64, 3072), torch.bfloat16),
        ((4, 1 << 20), torch.float64),
    ):
        out = torch.empty(shape, dtype=dtype, device=device)
        with use("reference"):
            expected = hutchinson_probe(shape, 3, 1, dtype=dtype, device=device)
        ours = partial(hutchinson_probe, shape, 3, 1, dtype=dtype, device=device, out=out)
        refuse_above(0.0, float((ours() != expected).sum()), f"hutchinson_probe at {shape}, in wrong signs,")
        theirs, unit = partial(peer, torch.empty_like(out)), "wrong signs"
        yield Case(f"{shape} {str(dtype)[6:]}", ours, theirs, out.nbytes, 0.0, unit, "hutchinson_probe", dtype)


if __name__ == "__main__":
    show(cases)

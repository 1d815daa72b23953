"""`python -m benchmarks.hutchinson_dot`: v . w with v made again, against a stored v, multiplied and summed by torch.

The peer does not pay for making v, and needs memory for it. Rows: shape, kind and dtype, milliseconds (medians), the ratio of
paired turns with its 20 and 80 % quantiles, error in ulp relative to sum_i |v_i w_i|. More than 2 ulp is not timed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.case import NORMAL, Case, refuse_above, show
from halfbridge.kernels import hutchinson_dot, hutchinson_probe, normal, use

ALLOWED = 2.0
KINDS: tuple[Literal["rademacher", "gaussian"], ...] = ("rademacher", "gaussian")


def aot_cases() -> Iterator[tuple[str, Callable[[], object], int, int]]:
    """(label, launch, elements, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.hutchinson_dot import hutchinson_dot_triton

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for kind in ("rademacher", "gaussian"):
            for shape in ((1024, 3072), (4096, 1024), (65536, 12), (65536, 2)):
                jv = torch.empty((1, *shape), dtype=dtype)
                yield (
                    f"{kind}, samples of {shape[1]}, {str(dtype)[6:]}",
                    lambda jv=jv, kind=kind: hutchinson_dot_triton(jv, 3, [1], 0, kind),
                    jv.numel(),
                    jv.nbytes + shape[0] * max(4, dtype.itemsize),
                )


def error_ulp(got: Tensor, v: Tensor, w: Tensor, wide: Tensor | None) -> float:
    """The largest error in ulp of sum_i |v_i w_i|; wide: normals before they were rounded to v. Where those that are off by
    what is allowed round elsewhere, that much more is allowed."""
    eps = torch.finfo(got.dtype).eps
    size = (v.double() * w.double()).abs()
    if wide is not None:
        off = 2 * eps * NORMAL
        size += ((wide + off).to(v.dtype).double() - (wide - off).to(v.dtype).double()) * w.double().abs() / (2 * eps)
    exact = (v.double() * w.double()).sum(1)
    return float(((got - exact).abs() / size.sum(1)).max()) / eps


def cases(device: str) -> Iterator[Case]:
    """Signs and normals, short and long samples; the peer has v."""
    for shape, dtype in (
        ((4096, 2), torch.float32),
        ((64, 3072), torch.float32),
        ((64, 3072), torch.bfloat16),
        ((4, 1 << 20), torch.float32),
    ):
        for kind in KINDS:
            w = normal(shape, 1, dtype=dtype, device=device)
            with use("reference"):
                v = hutchinson_probe(shape, 3, 1, 0, kind, dtype, device)
                wide = hutchinson_probe(shape, 3, 1, 0, kind, torch.float64, device)
            error = error_ulp(hutchinson_dot(w, 3, 1, kind=kind), v, w, wide if kind == "gaussian" else None)
            refuse_above(ALLOWED, error, f"hutchinson_dot at {shape}")
            yield Case(
                f"{shape} {kind} {str(dtype)[6:]}",
                partial(hutchinson_dot, w, 3, 1, kind=kind),
                lambda v=v, w=w: (v * w).sum(1),
                w.nbytes,
                error,
                "ulp of sum |v w|",
                "hutchinson_dot",
                dtype,
            )


if __name__ == "__main__":
    show(cases)

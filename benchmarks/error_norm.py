"""`python -m benchmarks.error_norm`: `error_norm` of six vectors against the plain torch expression.

Rows: shape, milliseconds (medians), the ratio of paired turns with its 20 and 80 % quantiles, largest relative error
against float64. A result that is off by more than 1e-5 is not timed.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.case import Case, refuse_above, show
from halfbridge.kernels import error_norm, normal

COEFFICIENTS = (0.00123, -0.00425, 0.0369, -0.0508, 0.0419, -0.025)  # of the size of Dormand and Prince's
ALLOWED = 1e-5


def plain(vectors: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """What one writes without it."""
    e = sum(c * v for c, v in zip(COEFFICIENTS, vectors, strict=True))
    r = e / (1e-6 + 1e-3 * torch.maximum(x.abs(), y.abs()))
    return r.flatten(1).square().mean(1).sqrt()


def aot_cases() -> Iterator[tuple[str, Callable[[], object], int, int]]:
    """(label, launch, elements, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.error_norm import error_norm_triton

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for count, shape in ((2, (64, 3072)), (6, (64, 3072)), (2, (4096, 64)), (2, (4096, 2))):
            states = [torch.empty(shape, dtype=dtype) for _ in range(count + 2)]
            n = states[0].numel()
            yield (
                f"error_norm {count} vectors {shape} {str(dtype)[6:]}",
                lambda s=states: error_norm_triton(s[2:], [1.0] * len(s[2:]), s[0], s[1], 1e-3, 1e-6, "sample"),
                n,
                n * (count + 2) * dtype.itemsize + shape[0] * max(dtype.itemsize, 4),
            )


def cases(device: str) -> Iterator[Case]:
    """Six vectors; ours is what runs on that device. A wrong result raises."""
    for shape in ((1, 2), (64, 64), (64, 3072), (64, 49152)):
        x, y, *vectors = (normal(shape, 1, draw, device=device) for draw in range(8))

        def ours(x: Tensor = x, y: Tensor = y, vectors: list[Tensor] = vectors) -> Tensor:
            return error_norm(vectors, COEFFICIENTS, x, y, rtol=1e-3, atol=1e-6)

        def peer(x: Tensor = x, y: Tensor = y, vectors: list[Tensor] = vectors) -> Tensor:
            return plain(vectors, x, y)

        exact = plain([v.double() for v in vectors], x.double(), y.double())
        error = float(((ours() - exact) / exact).abs().max())
        refuse_above(ALLOWED, error, f"error_norm at {shape}")
        yield Case(str(shape), ours, peer, 8 * x.nbytes, error, "relative", "error_norm")


if __name__ == "__main__":
    show(cases)

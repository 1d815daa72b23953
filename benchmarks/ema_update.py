"""`python -m benchmarks.ema_update`: averages of a network's parameters against a loop of torch's lerp.

Rows: tensors and elements, milliseconds (medians), the ratio of paired turns with its 20 and 80 % quantiles, error in ulps of
the largest parameter. A result that is off by more than 2 is not timed.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, refuse_above, show
from halfbridge.kernels import ParameterAverages, normal

WEIGHT = 0.01
ALLOWED = 2.0


def parameters(width: int, depth: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Weights and biases of `depth` layers."""
    shapes = [shape for _ in range(depth) for shape in ((width, width), (width,))]
    return [normal(shape, 1, draw, dtype=dtype, device=device) for draw, shape in enumerate(shapes)]


def aot_cases() -> Iterator[tuple[str, Callable[[], object], int, int]]:
    """(label, launch, elements, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.ema_update import ema_update_triton

    float32, bfloat16, float64 = torch.float32, torch.bfloat16, torch.float64
    for average, parameter, lists in (
        (float32, float32, 1), (float32, float32, 3), (float32, bfloat16, 1), (bfloat16, bfloat16, 1), (float64, float64, 1),
    ):  # fmt: skip
        now = [torch.zeros(shape, dtype=parameter) for shape in ((512, 512), (512,))]
        kept = [[p.to(average, copy=True) for p in now] for _ in range(lists)]
        n = sum(p.numel() for p in now)
        yield (
            f"ema_update {lists} x {str(average)[6:]} of {str(parameter)[6:]}",
            lambda a=kept, p=now: ema_update_triton(a, p, [WEIGHT] * len(a), {}),
            n,
            n * (parameter.itemsize + 2 * lists * average.itemsize),
        )


def cases(device: str) -> Iterator[Case]:
    """Ours is what runs on that device. A wrong result raises."""
    for width, depth in ((16, 4), (256, 8), (1024, 8)):
        now = parameters(width, depth, torch.float32, device)
        averages, others = [p.flip(0) for p in now], [p.flip(0) for p in now]
        exact = [a.double() + WEIGHT * (p.double() - a.double()) for a, p in zip(averages, now, strict=True)]
        pairs = ParameterAverages(averages, now)
        pairs.update(WEIGHT)
        error = max(float(((a - e) / e.abs().max()).abs().max()) for a, e in zip(averages, exact, strict=True))
        error /= torch.finfo(torch.float32).eps
        refuse_above(ALLOWED, error, f"ema_update at {width} x {depth}")

        def loop(averages: list[Tensor] = others, now: list[Tensor] = now) -> None:
            for a, p in zip(averages, now, strict=True):
                a.lerp_(p, WEIGHT)

        n = sum(p.numel() for p in now)
        ours, unit = partial(pairs.update, WEIGHT), "ulp of the largest"
        yield Case(f"{len(now)} of {n}", ours, loop, 12 * n, error, unit, "ema_update")


if __name__ == "__main__":
    show(cases)

"""`python -m benchmarks.edm_precondition`: the passes around a network against plain torch, with a sigma for each sample.

Rows: pass, shape, milliseconds (medians), the ratio of paired turns with its 20 and 80 % quantiles, error relative to the
largest result. A result that is off by more than 1e-6 is not timed.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.case import Case, refuse_above, show
from halfbridge.kernels import normal
from halfbridge.kernels.edm_precondition import edm_input, edm_output

DATA = 0.5
ALLOWED = 1e-6
UNIT = "of the largest"


def plain_input(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes without it."""
    s = sigma.view(-1, *(1,) * (x.dim() - 1))
    return x / (s**2 + DATA**2).sqrt(), sigma.log() / 4


def plain_output(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    s = sigma.view(-1, *(1,) * (x.dim() - 1))
    return DATA**2 / (s**2 + DATA**2) * x + s * DATA / (s**2 + DATA**2).sqrt() * output


def aot_cases() -> Iterator[tuple[str, Callable[[], object], int, int]]:
    """(label, launch, elements, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.edm_precondition import edm_input_triton, edm_output_triton, edm_scale_triton

    for x_dtype, y_dtype in (
        (torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2, (torch.float64,) * 2,
    ):  # fmt: skip
        for shape in ((64, 3072), (4096, 2)):
            x, y = torch.empty(shape, dtype=x_dtype), torch.empty(shape, dtype=y_dtype)
            sigma = torch.empty(shape[0], dtype=torch.float64 if x_dtype == torch.float64 else torch.float32)
            n, a, b, levels = x.numel(), x_dtype.itemsize, y_dtype.itemsize, sigma.nbytes
            kind = f"{shape} {str(x_dtype)[6:]}"
            if x_dtype == y_dtype:
                yield f"edm_input {kind}", lambda x=x, s=sigma: edm_input_triton(x, s, DATA), n, 2 * n * a + 2 * levels
            kind = f"{kind}, {str(y_dtype)[6:]}"
            yield (
                f"edm_output {kind}",
                lambda x=x, y=y, s=sigma: edm_output_triton(x, y, s, DATA),
                n,
                n * (2 * a + b) + levels,
            )
            yield (
                f"edm_scale {kind}",
                lambda x=x, s=sigma, to=y_dtype: edm_scale_triton(x, s, DATA, "out", to),
                n,
                n * (a + b) + levels,
            )


def cases(device: str) -> Iterator[Case]:
    """Ours is what runs on that device. A wrong result raises."""
    for shape in ((1, 2), (256, 2), (64, 3072), (64, 49152)):
        x, y = (normal(shape, 1, draw, device=device) for draw in range(2))
        sigma = normal(shape[:1], 2, device=device).exp()
        exact = plain_input(x.double(), sigma.double())[0], plain_output(x.double(), y.double(), sigma.double())
        found = edm_input(x, sigma, DATA)[0], edm_output(x, y, sigma, DATA)
        errors = [float(((a - b).abs() / b.abs().max()).max()) for a, b in zip(found, exact, strict=True)]
        for part, error in zip(("input", "output"), errors, strict=True):
            refuse_above(ALLOWED, error, f"edm_{part} at {shape}")
        yield Case(
            f"input {shape}",
            lambda x=x, s=sigma: edm_input(x, s, DATA),
            lambda x=x, s=sigma: plain_input(x, s),
            2 * x.nbytes,
            errors[0],
            UNIT,
            "edm_input",
        )
        yield Case(
            f"output {shape}",
            lambda x=x, y=y, s=sigma: edm_output(x, y, s, DATA),
            lambda x=x, y=y, s=sigma: plain_output(x, y, s),
            3 * x.nbytes,
            errors[1],
            UNIT,
            "edm_output",
        )


if __name__ == "__main__":
    show(cases)

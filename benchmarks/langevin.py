"""`python -m benchmarks.langevin`: the corrector step against its plain torch expression, which stores z and the score.

The error is in float32 ulp of the largest result, against the reference in float64; more than 4 is not timed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, refuse_above, show
from halfbridge.kernels import Noise, langevin, normal, use

SNR, SCALE, ALLOWED = 0.16, -1.7, 4.0


def plain(x: Tensor, stored: Tensor) -> Tensor:
    """What one writes without it (Song et al.'s code, with norms of each sample)."""
    score, z = SCALE * stored, torch.randn_like(x)
    e = 2 * (SNR * z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)).square()[:, None]
    return x + e * score + (2 * e).sqrt() * z


def cases(device: str) -> Iterator[Case]:
    """States of a toy problem, of small and of large images; bytes: x and the stored vector in, the new state out."""
    for shape in ((256, 2), (64, 3072), (16, 196608)):
        x, stored = (normal(shape, 1, draw, device=device) for draw in (1, 2))
        noise = Noise(1.0, 3, 1)
        ours = partial(langevin, x, stored, snr=SNR, noise=noise, scale=SCALE)
        with use("reference"):
            z = normal(shape, 3, 1, dtype=torch.float64, device=device)
            wide = langevin(x.double(), stored.double(), snr=SNR, noise=z, scale=SCALE)
        error = float((ours() - wide).abs().max() / wide.abs().max()) / torch.finfo(torch.float32).eps
        moved = (3 if shape[1] <= 4096 else 4) * x.nbytes  # longer samples: a second pass over the stored vector
        refuse_above(ALLOWED, error, f"langevin at {shape}")
        yield Case(str(shape), ours, partial(plain, x, stored), moved, error, "ulp of the largest", "langevin")


def aot_cases() -> Iterator[tuple[str, Callable[[], Any], int, int]]:
    """(label, launch, elements, bytes that must move) for the compiler without a GPU."""
    from halfbridge.kernels.gpu.langevin import ROW, langevin_triton

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in ((1024, 3072), (4096, 1024), (65536, 2), (64, 12288)):
            x, stored, out = (torch.empty(shape, dtype=dtype) for _ in range(3))
            run = partial(langevin_triton, x, stored, Noise(1.0, 3, 1), SNR, SCALE, 1.0, "sample", out)
            yield f"{str(dtype)[6:]}, samples of {shape[1]}", run, x.numel(), (3 if shape[1] <= ROW else 4) * x.nbytes


if __name__ == "__main__":
    show(cases)

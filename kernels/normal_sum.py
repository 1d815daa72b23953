"""A weighted sum of counter-based normals, none of them stored: what a time of a Brownian tree comes down to."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.normal import check_dtype, check_shape
from halfbridge.kernels.philox import check_draw, check_first, check_seed

CHUNK = {"cpu": 1 << 15}  # normals held at once by the reference
GPU_CHUNK = 1 << 22


def normal_sum(
    shape: Sequence[int],
    seed: int,
    draws: Sequence[int],
    coefficients: Sequence[float],
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """sum_k coefficients[k] N_k in float64, N_k the bits of normal(shape, seed, draws[k], first, dtype).

    Each product and each sum is rounded on its own, in the order of the draws: the same bits on every CPU backend, for any
    batch, chunking and number of threads. float16 and bfloat16 take float32 normals. TypeError or ValueError as `normal`
    has them, and for coefficients that are not finite or not one a draw.
    """
    sizes, device = check_shape(shape), torch.device(device)
    check_dtype(dtype)
    seed, first = check_seed(seed), check_first(first, sizes[0])
    indices = tuple(check_draw(draw) for draw in draws)
    factors = tuple(float(c) for c in coefficients)
    if len(factors) != len(indices):
        raise ValueError(f"`coefficients` has {len(factors)} entries for {len(indices)} `draws`; pass one for each")
    if not all(map(math.isfinite, factors)):
        raise ValueError(f"`coefficients` = {factors} are not all finite; pass finite numbers")
    out = torch.zeros((sizes[0], math.prod(sizes[1:])), dtype=torch.float64, device=device)
    if out.numel() and indices:
        dtype = accumulation(dtype)
        resolve("normal_sum", device.type, dtype, out.numel() * len(indices))(out, seed, indices, factors, first, dtype)
    return out.view(sizes)


def normal_sum_reference(
    out: Tensor, seed: int, draws: Sequence[int], coefficients: Sequence[float], first: int, dtype: torch.dtype
) -> None:
    """Eager backend: adds to `out`, float64 zeros (batch, n); the normals are made by what makes them best."""
    samples, n = out.shape
    chunk = CHUNK.get(out.device.type, GPU_CHUNK) // len(draws)
    columns = min(n, 4 * max(1, chunk // 4))  # whole counters
    rows = max(1, chunk // columns)
    fill = resolve("normal", out.device.type, dtype, out.numel() * len(draws))
    for top, left in itertools.product(range(0, samples, rows), range(0, n, columns)):
        part = out[top : top + rows, left : left + columns]
        z = torch.empty((len(draws), *part.shape), dtype=dtype, device=out.device)
        fill(z, seed, draws, first + top, left)
        for normals, c in zip(z, coefficients, strict=True):
            part += normals.double().mul_(c)

"""Normals for a handful of numbers on the CPU: the eager reference's operations, on numpy arrays.

A solver's whole run at a small state needs a few hundred normals, and then the calls are what costs: some 150 of them, 0.6
us each in numpy against 3 us in torch. The bits are the reference's: integers, and float operations rounded exactly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from halfbridge.kernels.boxmuller import BITS, TABLES, cosine, logarithm, sine
from halfbridge.kernels.philox import MASK, philox, sample_words

FEW = 4096  # elements up to which numpy is faster

FLOATS: dict[torch.dtype, tuple[type, type]] = {
    torch.float32: (np.float32, np.int32),
    torch.float64: (np.float64, np.int64),
}


def fill_few(out: torch.Tensor, seed: int, draws: Sequence[int], first: int, start: int) -> None:
    """`normal.fill_reference` for a contiguous float32 or float64 `out` (draws, batch, n) in CPU memory."""
    samples, n = out.shape[1:]
    row = np.arange(len(draws) * samples)[:, None]
    draw = np.asarray(draws, dtype=np.int64)[row // samples]
    low, high = sample_words(first, row % samples)
    block = np.arange(start // 4, start // 4 - (-n // 4))[None, :]
    w0, w1, w2, w3 = philox(block, draw, low, high, seed & MASK, seed >> 32)
    radii, angles = np.stack((w0, w2), axis=-1), np.stack((w1, w3), axis=-1)
    z = np.stack(_box_muller(radii, angles, out.dtype), axis=-1)  # (rows, blocks, pair, cos or sin)
    out.view(len(row), n).numpy()[:] = z.reshape(len(row), -1)[:, :n]


def _box_muller(w0: Any, w1: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """`boxmuller.box_muller`: the radius of w0 times cosine and sine of w1."""
    real, integer = FLOATS[dtype]
    bits, table = BITS[dtype], TABLES[dtype]

    upper = w0 >> 31
    c = (2 * (w0 ^ (-upper & MASK)) + 1).astype(real) * real(2.0**-33)
    y = np.where(upper == 1, 1 - c, c).view(integer)
    k = (y - integer(bits.sqrt_half)) >> integer(bits.fraction)
    f = np.where(k == 0, -c, (y - (k << integer(bits.fraction))).view(real) - 1)
    r = np.sqrt(logarithm(f, k.astype(real), table) * -2)

    q = (w1 + (1 << 29)) >> 30
    b = (2 * (w1 - (q << 30)) + 1).astype(real) * real(2.0**-33)
    z = b * b
    s, c = sine(b, z, table), cosine(z, table)
    odd = (q & 1) == 1
    x = np.where(odd, s, c) * (1 - ((q + 1) & 2)).astype(real)
    return r * x, r * (np.where(odd, c, s) * (1 - (q & 2)).astype(real))

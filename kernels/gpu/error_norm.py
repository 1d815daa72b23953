"""`error_norm` on a GPU: every state is read once, the errors stay in registers, and norms of tiles are what is written.

A tile is a part of one long sample, or several short samples, one a row; both depend on a sample's size alone. Norms of the
tiles of a sample are the elements of the next launch, until one is left: one launch for samples of up to TILE elements, two for
up to TILE^2.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.aliasing import stored
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.gpu.launch import COEFFICIENTS, bits, coefficient, launch, triton_dtype

VECTORS = 6
TILE = 1024  # elements: 8 a thread; twice as many of 16 bits, for AMD's wider waves move 16 bytes a thread too


@triton.jit
def add_term(total, v, pattern, offsets, mask, DTYPE: tl.constexpr):
    """total + c v of a tile."""
    return total + coefficient(pattern, None, 0, DTYPE) * tl.load(v + offsets, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def powers_of_two(magnitude, DTYPE: tl.constexpr):
    """(2^k, 2^-k) near the number with the bits `magnitude`, k within what both can be and leave room for a square."""
    if DTYPE == tl.float64:
        k = tl.minimum(tl.maximum(magnitude >> 52, 123), 1923)
        return (k << 52).to(tl.float64, bitcast=True), ((2046 - k) << 52).to(tl.float64, bitcast=True)
    else:
        k = tl.minimum(tl.maximum(magnitude >> 23, 27), 227)
        return (k << 23).to(tl.float32, bitcast=True), ((254 - k) << 23).to(tl.float32, bitcast=True)


@triton.jit
def root_sum_of_squares(r, weight, DTYPE: tl.constexpr):
    """sqrt(weight sum_i r_i^2) of each row, scaled by a power of two so that no square overflows or is lost."""
    if DTYPE == tl.float64:
        magnitude = r.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        magnitude = r.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    up, down = powers_of_two(tl.max(magnitude, 1), DTYPE)
    r *= down[:, None]
    return up * tl.sqrt(tl.sum(r * r, 1) * coefficient(weight, None, 0, DTYPE))


@triton.jit(do_not_specialize=[*COEFFICIENTS, "rtol", "atol", "weight"])
def error_norm_kernel(
    out, x, y, v0, v1, v2, v3, v4, v5,
    b0: tl.int64, b1: tl.int64, b2: tl.int64, b3: tl.int64, b4: tl.int64, b5: tl.int64,
    rtol: tl.int64, atol: tl.int64, weight: tl.int64, batch: tl.int64, d: tl.int64, parts: tl.int32,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """out[row, part] = sqrt(weight sum_i r_i^2) over a part of COLUMNS elements of each of ROWS samples of d elements.

    COUNT 0: r is x itself, norms of parts. ALIGNED: a power of two that divides d.
    """
    top, part = (tl.program_id(0) // parts).to(tl.int64) * ROWS, tl.program_id(0) % parts
    begin = part.to(tl.int64) * COLUMNS
    start = tl.multiple_of(top * d + begin, ALIGNED)
    width = tl.multiple_of(tl.minimum(d - begin, COLUMNS).to(tl.int32), ALIGNED)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    mask = column < width
    if ROWS > 1:
        offsets = row * width + column
        mask = mask & (row < batch - top)
    else:
        offsets = row + column

    r = tl.load(x + start + offsets, mask=mask, other=0.0).to(DTYPE)
    if COUNT > 0:
        a, b = r, tl.load(y + start + offsets, mask=mask, other=0.0).to(DTYPE)
        e = add_term(tl.zeros([ROWS, COLUMNS], DTYPE), v0 + start, b0, offsets, mask, DTYPE)
        if COUNT > 1:
            e = add_term(e, v1 + start, b1, offsets, mask, DTYPE)
        if COUNT > 2:
            e = add_term(e, v2 + start, b2, offsets, mask, DTYPE)
        if COUNT > 3:
            e = add_term(e, v3 + start, b3, offsets, mask, DTYPE)
        if COUNT > 4:
            e = add_term(e, v4 + start, b4, offsets, mask, DTYPE)
        if COUNT > 5:
            e = add_term(e, v5 + start, b5, offsets, mask, DTYPE)
        relative, absolute = coefficient(rtol, None, 0, DTYPE), coefficient(atol, None, 0, DTYPE)
        tolerance = relative * tl.maximum(tl.abs(a), tl.abs(b)) + absolute
        r = tl.where(e == 0.0, e, e / tolerance) + 0.0 * a + 0.0 * b  # 0 times what is not finite is NaN
    norm = root_sum_of_squares(r, weight, DTYPE)
    index = tl.arange(0, ROWS)
    tl.store(out + top * parts + part + index, norm, mask=index < batch - top)


def error_norm_triton(
    vectors: Sequence[Tensor], coefficients: Sequence[float], x: Tensor, y: Tensor, rtol: float, atol: float, norm: str
) -> Tensor:
    """`error_norm_reference`, with sums in the accumulation dtype; a norm over the batch is that of one long sample."""
    batch = len(x) if norm == "sample" else 1
    inner = accumulation(x.dtype)
    d = x.numel() // max(batch, 1)
    if d == 0:
        return torch.zeros((batch,) if norm == "sample" else (), dtype=inner, device=x.device)
    states = [stored(t) for t in (x, y, *vectors)]
    numbers = (*bits(coefficients, x.dtype), *(0,) * (VECTORS - len(vectors)), *bits([rtol, atol], x.dtype))
    norms = tile_norms(states, numbers, batch, d, 1.0 / d)
    while norms.shape[1] > 1:
        norms = tile_norms([norms, norms], (0,) * len(numbers), batch, norms.shape[1], 1.0)
    return norms[:, 0] if norm == "sample" else norms[0, 0]


def tile_norms(states: list[Tensor], numbers: tuple[int, ...], batch: int, d: int, weight: float) -> Tensor:
    """sqrt(weight sum r^2) over the tiles of each sample, (batch, tiles): no tile's overflows if the whole sample's does not."""
    x = states[0]
    tile = 2 * TILE if x.itemsize == 2 else TILE
    columns = min(tile, triton.next_power_of_2(d))
    rows, parts = tile // columns, -(-d // columns)
    out = torch.empty((batch, parts), dtype=accumulation(x.dtype), device=x.device)
    launch(
        error_norm_kernel, -(-batch // rows) * parts, x,
        out, *states, *(x,) * (2 + VECTORS - len(states)), *numbers, *bits([weight], x.dtype),
        batch, d, parts,
        COUNT=len(states) - 2, ROWS=rows, COLUMNS=columns, ALIGNED=min(d & -d, 16), DTYPE=triton_dtype(x.dtype),
    )  # fmt: skip
    return out

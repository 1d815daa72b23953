"""`mixture_field` in two kernels for large d: exponents of some samples with all components, then the sums that they weigh.

Each distance is formed once, each exponential once for every WIDTH elements of d. A tile of exponents knows its maximum, and
tiles whose weights are all zero beside the sample's maximum are not summed: they would add nothing, to the last bit.
"""

import triton
import triton.language as tl

from halfbridge.kernels.gpu.launch import coefficient
from halfbridge.kernels.gpu.mixture_parts import NUMBERS, difference, exponents, gains, squared_distance


@triton.jit
def exponents_tile(
    x, base, row, keep, means, bias, half, half_bits, narrower, alpha, out, peaks, k, d, stride, inner, tile, tiles,
    FAR: tl.constexpr, DEPTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Exponents of the samples `keep` with one tile of components, and their maximum; sums of DEPTH terms are added with what
    the additions lose (Kahan)."""
    c = tile * BK + tl.arange(0, BK)
    inside = c < k
    xs = x + row[None, :] * d
    ms = means + c.to(tl.int64)[None, :] * stride
    total = tl.zeros([BN, BK], DTYPE)
    lost = tl.zeros([BN, BK], DTYPE)
    for start in tl.range(0, d, DEPTH, num_stages=3):
        i = start + tl.arange(0, DEPTH)[:, None]
        y = tl.load(xs + i, mask=keep[None, :] & (i < d), other=0.0).to(DTYPE)
        m = tl.load(ms + i.to(tl.int64) * inner, mask=inside[None, :] & (i < d), other=0.0).to(DTYPE)
        more = squared_distance(y, m, alpha, FAR) - lost
        new = total + more
        lost = (new - total) - more
        total = new
    e = exponents(total, base, c, inside, bias, half, half_bits, narrower, FAR, DTYPE)
    tl.store(out + row[:, None] * k + c[None, :], e, mask=keep[:, None] & inside[None, :])
    tl.store(peaks + row * tiles + tile, tl.max(e, 1), mask=keep)


@triton.jit(do_not_specialize=[*NUMBERS, "across"])
def exponents_kernel(
    x, squares, limit, limit_bits: tl.int64, means, bias, half, half_bits: tl.int64, narrower, alpha_bits: tl.int64,
    out, peaks, n: tl.int64, k, d, stride, inner, tiles, across: tl.int32,
    DEPTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """out (n, k), peaks (n, tiles): exponents and their maxima over tiles of BK components. Far samples as in `fused_kernel`.

    Programs of one tile and all samples, of which there are `across`, follow on each other, so that caches hold the tile.
    """
    tile = tl.program_id(0) // across
    row = (tl.program_id(0) % across).to(tl.int64) * BN + tl.arange(0, BN)
    base = tl.load(squares + row, mask=row < n, other=0.0)
    alpha = coefficient(alpha_bits, None, 0, DTYPE)
    far = base > coefficient(limit_bits, limit, 0, DTYPE)
    near = (row < n) & (far == 0)
    if tl.max(near.to(tl.int32), 0) > 0:
        exponents_tile(
            x, base, row, near, means, bias, half, half_bits, narrower, alpha, out, peaks, k, d, stride, inner,
            tile, tiles, False, DEPTH, BN, BK, DTYPE,
        )  # fmt: skip
    if tl.max(far.to(tl.int32), 0) > 0:
        exponents_tile(
            x, base, row, far, means, bias, half, half_bits, narrower, alpha, out, peaks, k, d, stride, inner,
            tile, tiles, True, DEPTH, BN, BK, DTYPE,
        )  # fmt: skip


@triton.jit(do_not_specialize=NUMBERS)
def sums_kernel(
    x, means, logits, peaks, tops, gain, gain_bits: tl.int64, alpha_bits: tl.int64, offset: tl.int64, totals, sums,
    n: tl.int64, k, d, stride, inner, tiles, length,
    FIELD: tl.constexpr, DIFFERENCE: tl.constexpr, SHIFT: tl.constexpr, GONE: tl.constexpr,
    DEPTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """totals (parts, n) and sums (parts, n, d), parts of `length` tiles: of weights exp(exponent - tops) and what they weigh.

    Tiles are [components, samples, d] here. exp(x) is 0 for x < GONE.
    """
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    part = tl.program_id(2)
    live = row < n
    alpha = coefficient(alpha_bits, None, 0, DTYPE)
    top = tl.load(tops + row, mask=live, other=0.0)
    y = tl.load(x + row[:, None] * d + i[None, :], mask=live[:, None] & (i < d)[None, :], other=0.0).to(DTYPE)
    total = tl.zeros([BN], DTYPE)
    mixed = tl.zeros([BN, WIDTH], DTYPE)
    for tile in range(part * length, tl.minimum(part * length + length, tiles)):
        peak = tl.load(peaks + row * tiles + tile, mask=live, other=float("-inf"))
        if tl.max((peak - top > GONE).to(tl.int32), 0) > 0:
            for start in tl.range(tile * BK, tl.minimum(tile * BK + BK, k), DEPTH, num_stages=3):
                c = start + tl.arange(0, DEPTH)
                inside = c < k
                at = row[None, :] * k + c[:, None]
                e = tl.load(logits + at, mask=live[None, :] & inside[:, None], other=float("-inf"))
                w = tl.exp(e - top[None, :])
                total += tl.sum(w, 0)
                if FIELD:
                    where = c.to(tl.int64)[:, None] * stride + i.to(tl.int64)[None, :] * inner
                    m = tl.load(means + where, mask=inside[:, None] & (i < d)[None, :], other=0.0).to(DTYPE)
                    if DIFFERENCE:
                        wg = (w * gains(gain, gain_bits, c, inside, DTYPE)[:, None])[:, :, None]
                        mixed += tl.sum(wg * difference(y[None, :, :], m[:, None, :], alpha), 0)
                    if SHIFT:
                        wo = (w * coefficient(offset, None, 0, DTYPE))[:, :, None]
                        mixed += tl.sum(wo * m[:, None, :], 0)
    at = part.to(tl.int64) * n + row
    if tl.program_id(1) == 0:
        tl.store(totals + at, total, mask=live)
    if FIELD:
        tl.store(sums + at[:, None] * d + i[None, :], mixed, mask=live[:, None] & (i < d)[None, :])

"""`mixture_field` in one kernel for small d: exponents, weights and sums stay in registers.

Each lane keeps a running maximum, total and sum of its own, over every BK-th component of a part; only at the end of the part
do lanes meet. So nothing is exchanged within the loop.
"""

import triton
import triton.language as tl

from halfbridge.kernels.gpu.launch import coefficient
from halfbridge.kernels.gpu.mixture_parts import NUMBERS, difference, exponents, gains, squared_distance


@triton.jit
def stream(
    x, base, row, keep, means, bias, half, half_bits, narrower, gain, gain_bits, alpha, offset, tops, totals, sums,
    n, k, d, stride, inner, part, length,
    FAR: tl.constexpr, FIELD: tl.constexpr, DIFFERENCE: tl.constexpr, SHIFT: tl.constexpr,
    BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LOWEST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The sums of one part, for the samples `keep` of a program."""
    i = tl.arange(0, BD)
    y = tl.load(x + row[None, :] * d + i[:, None], mask=keep[None, :] & (i < d)[:, None], other=0.0).to(DTYPE)
    top = tl.full([BN, BK], LOWEST, DTYPE)
    total = tl.zeros([BN, BK], DTYPE)
    mixed = tl.zeros([BD, BN, BK], DTYPE)
    stop = tl.minimum(part * length + length, k)
    for start in range(part * length, stop, BK):
        c = start + tl.arange(0, BK)
        inside = c < stop
        where = c.to(tl.int64)[None, :] * stride + i.to(tl.int64)[:, None] * inner
        m = tl.load(means + where, mask=inside[None, :] & (i < d)[:, None], other=0.0).to(DTYPE)
        squared = squared_distance(y, m, alpha, FAR)
        e = exponents(squared, base, c, inside, bias, half, half_bits, narrower, FAR, DTYPE)
        rise = e - top
        small = tl.exp(-tl.abs(rise))  # one of the two factors is 1
        w = tl.where(rise > 0, 1.0, small)
        fade = tl.where(rise > 0, small, 1.0)
        top = tl.where(rise > 0, e, top)
        total = total * fade + w
        if FIELD:
            mixed *= fade[None, :, :]
            if DIFFERENCE:
                wg = (w * gains(gain, gain_bits, c, inside, DTYPE)[None, :])[None, :, :]
                mixed += wg * difference(y[:, :, None], m[:, None, :], alpha)
            if SHIFT:
                mixed += (w * coefficient(offset, None, 0, DTYPE))[None, :, :] * m[:, None, :]
    best = tl.max(top, 1)
    scale = tl.exp(top - best[:, None])
    at = part.to(tl.int64) * n + row
    tl.store(tops + at, best, mask=keep)
    tl.store(totals + at, tl.sum(total * scale, 1), mask=keep)
    if FIELD:
        whole = tl.sum(mixed * scale[None, :, :], 2)
        tl.store(sums + at[None, :] * d + i[:, None], whole, mask=keep[None, :] & (i < d)[:, None])


@triton.jit(do_not_specialize=NUMBERS)
def fused_kernel(
    x, squares, limit, limit_bits: tl.int64, means, bias, half, half_bits: tl.int64, narrower, gain, gain_bits: tl.int64,
    alpha_bits: tl.int64, offset: tl.int64, tops, totals, sums, n: tl.int64, k, d, stride, inner, length,
    FIELD: tl.constexpr, DIFFERENCE: tl.constexpr, SHIFT: tl.constexpr,
    BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LOWEST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """tops (parts, n), totals (parts, n), sums (parts, n, d) of parts of `length` components, for BN samples of d elements.

    Samples with |x|^2 > limit have their exponents in the other form, in a pass of their own.
    """
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    base = tl.load(squares + row, mask=row < n, other=0.0)
    alpha = coefficient(alpha_bits, None, 0, DTYPE)
    far = base > coefficient(limit_bits, limit, 0, DTYPE)
    near = (row < n) & (far == 0)
    if tl.max(near.to(tl.int32), 0) > 0:
        stream(
            x, base, row, near, means, bias, half, half_bits, narrower, gain, gain_bits, alpha, offset, tops, totals,
            sums, n, k, d, stride, inner, tl.program_id(1), length,
            False, FIELD, DIFFERENCE, SHIFT, BD, BN, BK, LOWEST, DTYPE,
        )  # fmt: skip
    if tl.max(far.to(tl.int32), 0) > 0:
        stream(
            x, base, row, far, means, bias, half, half_bits, narrower, gain, gain_bits, alpha, offset, tops, totals,
            sums, n, k, d, stride, inner, tl.program_id(1), length,
            True, FIELD, DIFFERENCE, SHIFT, BD, BN, BK, LOWEST, DTYPE,
        )  # fmt: skip

"""What the kernels of `mixture_field` share: squared distances, exponents, and the sums of parts of the components.

Tiles have three axes, and the first is summed: it lies within a thread (Triton spreads the lanes over the last axis, then the
warps over what is left), so that nothing passes between threads in a loop. No kernel is specialized for the number of samples or
for what the components' numbers are: one machine code for all batches and times.
"""

import triton
import triton.language as tl

from halfbridge.kernels.gpu.launch import coefficient

NUMBERS = ["half_bits", "gain_bits", "alpha_bits", "offset", "widest_bits", "level_bits", "limit_bits", "n", "rows"]


@triton.jit
def difference(y, m, alpha):
    """y - alpha m with one rounding, of operands that broadcast."""
    return tl.fma(-alpha, m, y)


@triton.jit
def squared_distance(y, m, alpha, FAR: tl.constexpr):
    """|y - alpha m|^2, or, FAR, less |y|^2, [samples, components], of y [d, samples] and m [d, components]."""
    if FAR:
        p = (alpha * m)[:, None, :]
        return tl.sum(p * (p - (2.0 * y)[:, :, None]), 0)
    else:
        v = difference(y[:, :, None], m[:, None, :], alpha)
        return tl.sum(v * v, 0)


@triton.jit
def exponents(squared, base, c, inside, bias, half, half_bits, narrower, FAR: tl.constexpr, DTYPE: tl.constexpr):
    """bias_c + half_c squared (+ narrower_c base, FAR), [samples, components]; half is -1 / (2 s), its bits if s is common.

    FAR, what the samples' distances share is left out: half of the widest component times base.
    """
    b = tl.load(bias + c, mask=inside, other=float("-inf"))
    if half is None:
        return tl.fma(squared, coefficient(half_bits, None, 0, DTYPE), b[None, :])
    else:
        e = tl.fma(squared, tl.load(half + c, mask=inside, other=0.0)[None, :], b[None, :])
        if FAR:
            e = tl.fma(base[:, None], tl.load(narrower + c, mask=inside, other=0.0)[None, :], e)
        return e


@triton.jit
def gains(gain, gain_bits, c, inside, DTYPE: tl.constexpr):
    """gain_c, [components]; from its bits if it is common."""
    if gain is None:
        return tl.zeros(c.shape, DTYPE) + coefficient(gain_bits, None, 0, DTYPE)
    else:
        return tl.load(gain + c, mask=inside, other=0.0)


@triton.jit(do_not_specialize=NUMBERS)
def squares_kernel(
    t, out, rows: tl.int64, d, stride, inner, ROWS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr
):
    """out[row] = |t[row]|^2."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, WIDTH)
    total = tl.zeros([ROWS], DTYPE)
    for start in range(0, d, WIDTH):
        i = start + place
        mask = (row < rows)[:, None] & (i < d)[None, :]
        v = tl.load(t + row[:, None] * stride + i.to(tl.int64)[None, :] * inner, mask=mask, other=0.0).to(DTYPE)
        total += tl.sum(v * v, 1)
    tl.store(out + row, total, mask=row < rows)


@triton.jit(do_not_specialize=[*NUMBERS, "between"])
def finish_kernel(
    out, density, tops, totals, sums, squares, limit, limit_bits: tl.int64, widest, widest_bits: tl.int64,
    level, level_bits: tl.int64, n: tl.int64, d, parts, between: tl.int64,
    FIELD: tl.constexpr, DENSITY: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The parts' sums brought under one maximum, in their order: out = mean, density = log of the total.

    tops (parts, n), `between` apart, totals (parts, n), sums (parts, n, d); widest: -1 / (2 S).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    live = row < n
    tops += row
    totals += row
    top = tl.load(tops, mask=live, other=0.0)
    for part in range(1, parts):
        top = tl.maximum(top, tl.load(tops + tl.cast(part, tl.int64) * between, mask=live, other=0.0))
    total = tl.zeros([ROWS], DTYPE)
    mixed = tl.zeros([ROWS, WIDTH], DTYPE)
    mask = live[:, None] & (i < d)[None, :]
    for part in range(parts):
        part = tl.cast(part, tl.int64)
        scale = tl.exp(tl.load(tops + part * between, mask=live, other=0.0) - top)
        total += scale * tl.load(totals + part * n, mask=live, other=1.0)
        if FIELD:
            at = (part * n + row)[:, None] * d + i[None, :]
            mixed += scale[:, None] * tl.load(sums + at, mask=mask, other=0.0)
    if FIELD:
        tl.store(out + row[:, None] * d + i[None, :], (mixed / total[:, None]).to(out.dtype.element_ty), mask=mask)
    if DENSITY:  # noqa: SIM102 (known when it is compiled, unlike the next)
        if tl.program_id(1) == 0:
            base = tl.load(squares + row, mask=live, other=0.0)
            far = base > coefficient(limit_bits, limit, 0, DTYPE)
            shared = tl.where(far, base * coefficient(widest_bits, widest, 0, DTYPE), 0.0)
            value = shared + (top + tl.log(total)) + coefficient(level_bits, level, 0, DTYPE)
            tl.store(density + row, value, mask=live)

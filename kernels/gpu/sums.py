"""Sums over a sample inside a kernel, in twice the accumulation's precision: float32 results are right to an ulp, without
a float64 instruction, whatever order the compiler's tree has.

A partial sum is a pair (high, low) with high + low unevaluated (Dekker 1971; Ogita, Rump and Oishi 2005). What a product loses is
not kept: where multiplications and additions are fused, high = a b, low = fma(a, b, -high) does not survive the compiler, which
may fuse a b once more where `high` is added. So the rounding of each term, at most twice 2^-24 of it, is in the sum.
"""

import triton
import triton.language as tl


@triton.jit
def two_sum(a, b):
    """a + b as a pair, exactly (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


@triton.jit
def add_pairs(high, low, other_high, other_low):
    """(high, low) + (other_high, other_low), with the high parts added exactly."""
    total, error = two_sum(high, other_high)
    return total, low + other_low + error


@triton.jit
def by_fours(v, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """[ROWS, WIDTH] as four tensors [ROWS, WIDTH // 4], of which each thread has the neighbours that it loaded."""
    a, b = tl.split(v.reshape(ROWS, WIDTH // 4, 2, 2))
    a0, a1 = tl.split(a)
    b0, b1 = tl.split(b)
    return a0, b0, a1, b1


@triton.jit
def sum_pairs(high, low, AXIS: tl.constexpr):
    """Sum of pairs along an axis, as a pair."""
    return tl.reduce((high, low), AXIS, add_pairs)


@triton.jit
def exponent(v):
    """k with |v| near 2^k, as int32: between what leaves room for 2^-k and for the square of v / 2^k."""
    if v.dtype == tl.float64:
        k = (v.to(tl.int64, bitcast=True) >> 52).to(tl.int32) & 0x7FF
        return tl.minimum(tl.maximum(k, 123), 1923) - 1023
    else:
        k = (v.to(tl.int32, bitcast=True) >> 23) & 0xFF
        return tl.minimum(tl.maximum(k, 27), 227) - 127


@triton.jit
def power_of_two(k, DTYPE: tl.constexpr):
    """2^k, or the least normal number if that is larger."""
    if DTYPE == tl.float64:
        return ((tl.maximum(k, -1022) + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        return ((tl.maximum(k, -126) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def squares(v, ROWS: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr):
    """(k, sums), [ROWS, WIDTH // 4], of the squares of four neighbours over 4^k, each thread its own. SCALED: none overflows, and
    none vanishes but beside a larger one; else k is 0. The sums are right to two ulp."""
    a, b, c, d = by_fours(v, ROWS, WIDTH)
    if SCALED:
        k = exponent(tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d))))
        down = power_of_two(-k, v.dtype)
        a, b, c, d = a * down, b * down, c * down, d * down
    else:
        k = tl.zeros(a.shape, tl.int32)
    return k, (a * a + b * b) + (c * c + d * d)


@triton.jit
def rescaled(k, high, low, top):
    """The pair over 4^top instead of 4^k; k <= top."""
    down = power_of_two(k - top, high.dtype)
    return high * down * down, low * down * down


@triton.jit
def add_squares(k, high, low, more_k, more, SCALED: tl.constexpr):
    """Sums of squares, (k, high, low) and (more_k, more), added."""
    rest = tl.zeros_like(more)
    if SCALED:
        top = tl.maximum(k, more_k)
        high, low = rescaled(k, high, low, top)
        more, rest = rescaled(more_k, more, rest, top)
        k = top
    high, low = add_pairs(high, low, more, rest)
    return k, high, low


@triton.jit
def norms(k, high, low, SCALED: tl.constexpr):
    """Euclidean norms of the rows whose sums of squares these are, [ROWS, n] -> [ROWS]."""
    if SCALED:
        top = tl.max(k, 1)
        high, low = rescaled(k, high, low, top[:, None])
        high, low = sum_pairs(high, low, 1)
        root = power_of_two(top, high.dtype) * tl.sqrt(high + low)
    else:
        high, low = sum_pairs(high, low, 1)
        root = tl.sqrt(high + low)
    return root

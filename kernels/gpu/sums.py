"""Sums over a sample inside a kernel, in twice the accumulation's precision: float32 results are right to an ulp, without
a float64 instruction, whatever order the compiler's tree has.

A partial sum is a pair (high, low) with high + low unevaluated (Dekker 1971; Ogita, Rump and Oishi 2005).
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
def product(a, b):
    """a b as a pair, exactly: the low part is what rounding the high part lost."""
    high = a * b
    return high, tl.fma(a, b, -high)


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

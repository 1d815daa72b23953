"""Sums over a sample inside a kernel, in twice the accumulation's precision: float32 results are right to an ulp, without
a float64 instruction, whatever order the compiler's tree has.

A partial sum is a pair (high, low) with high + low unevaluated (Dekker 1971; Ogita, Rump and Oishi 2005).
"""

import triton
import triton.language as tl


@triton.jit
def add_pairs(high, low, other_high, other_low):
    """(high, low) + (other_high, other_low), by Knuth's error-free sum of the high parts."""
    total = high + other_high
    back = total - high
    error = (high - (total - back)) + (other_high - back)
    return total, low + other_low + error


@triton.jit
def product(a, b):
    """a b as a pair, exactly: the low part is what rounding the high part lost."""
    high = a * b
    return high, tl.fma(a, b, -high)


@triton.jit
def sum_pairs(high, low, AXIS: tl.constexpr):
    """Sum of pairs along an axis, as a pair."""
    return tl.reduce((high, low), AXIS, add_pairs)

"""Box-Muller from 32-bit words, with the same bits on every backend (Box and Muller 1958).

With u = (w + 1/2) / 2^32, the words (w0, w1) give sqrt(-2 ln u0) * (cos, sin)(2 pi u1). Library logarithms and cosines
differ in their last bit from one build, vector width or loop tail to the next. Here only operations that IEEE 754
rounds exactly are used (integers, int-to-float conversion, +, -, *, /, square root), each on its own: a fused
multiply-add would round once where this rounds twice.

`logarithm`, `sine`, `cosine` and `horner` use operators only: torch runs them on tensors, numba compiles them for
scalars. The polynomials are minimax fits (Remez in 50 digits) whose coefficients, rounded, leave an error of 9e-10 (log), 8e-9
(sin) and 7e-10 (cos) in float32, of 2e-18, 1e-17 and 5e-19 in float64. A float32 normal is within 9.96e-7 of the exact
one, for all pairs of words: all 2^32 radii and all 2^30 angles of a quadrant were scanned, then every pair that their
errors left possible.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Table(NamedTuple):
    """Coefficients in one precision, lowest power first, each a number of that precision.

    The first coefficient of sin and cos is held in two parts: its rounding alone would cost half of the error.
    """

    log: tuple[Any, ...]  # (2 atanh(s) - 2 s) / s^3 in s^2, |s| <= 3 - 2 sqrt 2
    sin: tuple[Any, ...]  # sin(2 pi b) / b in b^2, |b| <= 1/8
    cos: tuple[Any, ...]  # (cos(2 pi b) - 1) / b^2 in b^2, |b| <= 1/8
    sin_first: Any
    cos_first: Any
    ln2: Any  # leading bits of ln 2: k * ln2 is exact for |k| <= 64
    ln2_rest: Any  # ln 2 - ln2
    one: Any
    two: Any


FLOAT32 = Table(
    log=(0.6666677594184875, 0.3997754156589508, 0.29871729016304016),
    sin=(-1.951916885900573e-07, -41.3416633605957, 81.59235382080078, -75.39356231689453),
    cos=(-4.72219994662737e-07, 64.93932342529297, -85.44374084472656, 59.24596405029297),
    sin_first=6.2831854820251465,
    cos_first=-19.739208221435547,
    ln2=0.693145751953125,
    ln2_rest=1.428606765330187e-06,
    one=1.0,
    two=2.0,
)
FLOAT64 = Table(
    log=(
        0.6666666666666734, 0.39999999999414676, 0.2857142874238778, 0.2222219857317723,
        0.18183564326069543, 0.1531405056328448, 0.14795949502746897,
    ),
    sin=(
        2.2411942276111083e-16, -41.341702240399634, 81.60524927594452, -76.70585970331518,
        42.058684902060016, -15.093797505519564, 3.780726176840534,
    ),
    cos=(
        -1.0828535475904348e-15, 64.93939402266801, -85.45681720654005, 60.2446413316118,
        -26.42625114044036, 7.9031016384311625, -1.697020086539994,
    ),
    sin_first=6.283185307179586,
    cos_first=-19.739208802178716,
    ln2=0.6931471805601177,
    ln2_rest=-1.7239444525614835e-13,
    one=1.0,
    two=2.0,
)  # fmt: skip


def horner(c: Any, z: Any) -> Any:
    """sum_i c[i] z^i."""
    total = c[len(c) - 1] * z + c[len(c) - 2]
    for i in range(len(c) - 3, -1, -1):
        total = total * z + c[i]
    return total


def logarithm(f: Any, k: Any, table: Any) -> Any:
    """ln((1 + f) 2^k), sqrt(1/2) <= 1 + f <= sqrt 2, k a float: ln(1 + f) = 2 atanh(s) = f - s (f - s^2 R(s^2)), s = f
    / (2 + f).

    Relative accuracy holds as f -> 0 with k = 0, where the radius of a word near 2^32 comes from.
    """
    s = f / (table.two + f)
    z = s * s
    return k * table.ln2 + (k * table.ln2_rest + (f - s * (f - z * horner(table.log, z))))


def sine(b: Any, z: Any, table: Any) -> Any:
    """sin(2 pi b), |b| <= 1/8, z = b * b."""
    return b * table.sin_first + b * horner(table.sin, z)


def cosine(z: Any, table: Any) -> Any:
    """cos(2 pi b), |b| <= 1/8, z = b * b."""
    return table.one + (z * table.cos_first + z * horner(table.cos, z))


class Bits(NamedTuple):
    """How a float type is cut up: the integer of its width, its fraction's bits, sqrt(1/2) read as that integer."""

    integer: torch.dtype
    fraction: int
    sqrt_half: int


BITS = {torch.float32: Bits(torch.int32, 23, 0x3F3504F3), torch.float64: Bits(torch.int64, 52, 0x3FE6A09E667F3BCD)}
TABLES = {torch.float32: FLOAT32, torch.float64: FLOAT64}


def radius(w: Tensor, dtype: torch.dtype) -> Tensor:
    """sqrt(-2 ln u), u = (w + 1/2) / 2^32, for int64 words w.

    From the smaller of u and 1 - u, which are odd / 2^33 exactly until the one rounding to `dtype`. Near u = 1 the
    logarithm is that of 1 + f with f = u - 1: formed from a rounded u, it would put the radius off by 1e-4.
    """
    bits, upper = BITS[dtype], w >> 31
    c = (2 * (w ^ (-upper & 0xFFFFFFFF)) + 1).to(dtype) * 2.0**-33
    y = torch.where(upper == 1, 1 - c, c).view(bits.integer)
    k = (y - bits.sqrt_half) >> bits.fraction
    f = torch.where(k == 0, -c, (y - (k << bits.fraction)).view(dtype) - 1)
    return square_root(logarithm(f, k.to(dtype), TABLES[dtype]) * -2)


def square_root(x: Tensor) -> Tensor:
    """sqrt(x), rounded exactly, in place on the CPU.

    torch.sqrt on a CPU is MKL's and misses the nearest float32 for 0.6 % of arguments (torch 2.13); numpy's is the
    processor's.
    """
    if x.device.type != "cpu":
        return x.sqrt()
    np.sqrt(x.numpy(), out=x.numpy())
    return x


def direction(w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin)(2 pi u), u = (w + 1/2) / 2^32, for int64 words w: u = q/4 + b with the quadrant q from the integer,
    |b| < 1/8.
    """
    q = (w + (1 << 29)) >> 30
    b = (2 * (w - (q << 30)) + 1).to(dtype) * 2.0**-33
    z = b * b
    s, c = sine(b, z, TABLES[dtype]), cosine(z, TABLES[dtype])
    odd = (q & 1) == 1
    return torch.where(odd, s, c) * (1 - ((q + 1) & 2)), torch.where(odd, c, s) * (1 - (q & 2))


def box_muller(w0: Tensor, w1: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two independent standard normals from two words, int64 in, float32 or float64 out."""
    r = radius(w0, dtype)
    cos, sin = direction(w1, dtype)
    return r * cos, r * sin

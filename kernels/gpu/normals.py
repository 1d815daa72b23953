"""Standard normals made inside a kernel: Philox words, and Box-Muller on them, four normals a counter.

The words are those of `halfbridge.kernels.philox`, bit for bit, so a GPU draws the CPU's samples. A float32 normal is
within 2e-6 of the exact one of its words, a float64 normal within 1e-14. No library function is called: their logarithm
and cosine branch for arguments that a word cannot give, and change from one version to the next.
"""

import torch
import triton
import triton.language as tl

from halfbridge.kernels import boxmuller

# float32, minimax: -2 ln(1 + f) = f (-2 + f (1 + f L(f))), relative error 3e-8 for sqrt(1/2) <= 1 + f <= sqrt 2;
# sin(2 pi b) = b S(b^2), absolute error 5e-9 for |b| <= 1/8; cos(2 pi b) = 1 + b^2 C(b^2), 1e-9
L = tl.constexpr(
    (-0.6666753888130188, 0.5000449419021606, -0.3993454575538635, 0.3311240077018738,
     -0.2972137928009033, 0.2879089415073395, -0.17966362833976746)
)  # fmt: skip
S = tl.constexpr((6.2831854820251465, -41.34174728393555, 81.6024398803711, -75.74252319335938))
C = tl.constexpr((-19.739208221435547, 64.93914031982422, -85.42231750488281, 58.52032470703125))
MINUS_TWO_LN2 = tl.constexpr(-1.3862943611198906 * 2.0**-23)
UNIT = tl.constexpr(2.0**-33)
SQRT_HALF = tl.constexpr(boxmuller.BITS[torch.float32].sqrt_half)

DOUBLE = boxmuller.FLOAT64
LOG64, SIN64, COS64 = tl.constexpr(DOUBLE.log), tl.constexpr(DOUBLE.sin), tl.constexpr(DOUBLE.cos)
SIN64_FIRST, COS64_FIRST = tl.constexpr(DOUBLE.sin_first), tl.constexpr(DOUBLE.cos_first)
LN2, LN2_REST = tl.constexpr(DOUBLE.ln2), tl.constexpr(DOUBLE.ln2_rest)
SQRT_HALF64 = tl.constexpr(boxmuller.BITS[torch.float64].sqrt_half)


@triton.jit
def horner(c: tl.constexpr, LENGTH: tl.constexpr, z):
    """sum_i c[i] z^i."""
    total = z * c[LENGTH - 1] + c[LENGTH - 2]
    for i in tl.static_range(LENGTH - 2):
        total = total * z + c[LENGTH - 3 - i]
    return total


@triton.jit
def radius32(w):
    """sqrt(-2 ln u), u = (w + 1/2) / 2^32, for int32 words: from the smaller of u and 1 - u, as in `boxmuller.radius`."""
    c = ((w ^ (w >> 31)).to(tl.uint32, bitcast=True) * 2 + 1).to(tl.float32) * UNIT
    y = tl.where(w < 0, 1.0 - c, c).to(tl.int32, bitcast=True)
    k = (y - SQRT_HALF) & -(1 << 23)  # the exponent, times 2^23
    f = tl.where(k == 0, -c, (y - k).to(tl.float32, bitcast=True) - 1.0)
    square = k.to(tl.float32) * MINUS_TWO_LN2 + f * (f * (f * horner(L, 7, f) + 1.0) - 2.0)
    inverse = tl.rsqrt(square)  # approximate on a GPU: one Newton step makes the root exact but for its rounding
    root = square * inverse
    return root + 0.5 * inverse * tl.fma(-root, root, square)


@triton.jit
def direction32(w):
    """(cos, sin)(2 pi u) for int32 words: u = q/4 + b with the quadrant q from the integer, |b| < 1/8."""
    q = (w + (1 << 29)) >> 30
    b = (w * 4 + 2).to(tl.float32) * (UNIT * 0.5)  # w * 4 has lost the quadrant
    z = b * b
    s, c = b * horner(S, 4, z), z * horner(C, 4, z) + 1.0
    odd = (q & 1) != 0
    cos, sin = tl.where(odd, s, c), tl.where(odd, c, s)
    cos = (cos.to(tl.int32, bitcast=True) ^ (((q + 1) & 2) << 30)).to(tl.float32, bitcast=True)
    sin = (sin.to(tl.int32, bitcast=True) ^ ((q & 2) << 30)).to(tl.float32, bitcast=True)
    return cos, sin


@triton.jit
def radius64(w):
    """`boxmuller.radius` in float64, for int32 words."""
    c = ((w ^ (w >> 31)).to(tl.uint32, bitcast=True).to(tl.int64) * 2 + 1).to(tl.float64) * UNIT
    y = tl.where(w < 0, 1.0 - c, c).to(tl.int64, bitcast=True)
    k = (y - SQRT_HALF64) >> 52
    f = tl.where(k == 0, -c, (y - (k << 52)).to(tl.float64, bitcast=True) - 1.0)
    s = f / (f + 2.0)
    z = s * s
    of_f = f - s * (f - z * horner(LOG64, 7, z))
    turns = k.to(tl.float64)
    return tl.sqrt((turns * LN2 + (turns * LN2_REST + of_f)) * -2.0)


@triton.jit
def direction64(w):
    """`boxmuller.direction` in float64, for int32 words."""
    q = (w + (1 << 29)) >> 30
    b = (w * 4 + 2).to(tl.float64) * (UNIT * 0.5)  # w * 4 has lost the quadrant
    z = b * b
    s = b * SIN64_FIRST + b * horner(SIN64, 7, z)
    c = (z * COS64_FIRST + z * horner(COS64, 7, z)) + 1.0
    odd = (q & 1) != 0
    cos, sin = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((q + 1) & 2) != 0, -cos, cos), tl.where((q & 2) != 0, -sin, sin)


@triton.jit
def pair(w0, w1, DTYPE: tl.constexpr):
    """Two normals of two uint32 words."""
    w0, w1 = w0.to(tl.int32, bitcast=True), w1.to(tl.int32, bitcast=True)
    if DTYPE == tl.float64:
        r = radius64(w0)
        cos, sin = direction64(w1)
    else:
        r = radius32(w0)
        cos, sin = direction32(w1)
    return r * cos, r * sin


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Words of Philox4x32-10. Each round has two products of 64 bits: tl.philox makes four of their halves, which costs 5
    instructions more a normal."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def four_normals(block, draw, low, high, seed, DTYPE: tl.constexpr):
    """Normals of the counters (block, draw, low, high), uint32 tensors [n] (draw a scalar), as [n, 4]; seed is uint64."""
    w0, w1, w2, w3 = philox(block, draw, low, high, seed)
    z0, z1 = pair(w0, w1, DTYPE)
    z2, z3 = pair(w2, w3, DTYPE)
    return tl.join(tl.join(z0, z2), tl.join(z1, z3)).reshape(block.shape[0], 4)

"""`hutchinson_dot` on a GPU: jv is read once, its probe is made in registers, and sums are kept as pairs.

A tile is a part of one long sample, or several short samples, one a row; both depend on a sample's size alone.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.aliasing import stored
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.gpu.hutchinson_probe import signs
from halfbridge.kernels.gpu.launch import NOISE, launch, runs, triton_dtype
from halfbridge.kernels.gpu.noise import normals_of_tile
from halfbridge.kernels.gpu.sums import add_pairs, by_fours, sum_pairs, two_sum

TILE = {2: 4096, 4: 4096, 8: 2048}  # bytes of an element -> elements of a tile
PART = 4  # tiles of a part of a long sample
PARTS = 256  # that are added at once


@triton.jit
def sum_of_fours(v, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sums of four neighbours, [ROWS, WIDTH // 4]: rounded twice."""
    a, b, c, d = by_fours(v, ROWS, WIDTH)
    return (a + b) + (c + d)


@triton.jit
def pairs_of_fours(v, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sums of four neighbours as pairs."""
    a, b, c, d = by_fours(v, ROWS, WIDTH)
    ab, ab_low = two_sum(a, b)
    cd, cd_low = two_sum(c, d)
    high, low = two_sum(ab, cd)
    return high, low + (ab_low + cd_low)


@triton.jit
def probe_signs(inside, sample, draw, seed, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """`signs` of a tile, [ROWS, WIDTH]."""
    LANES: tl.constexpr = 128 if WIDTH > 128 else WIDTH
    counter = tl.arange(0, ROWS * WIDTH // LANES).to(tl.uint32)
    place = (inside // 128).to(tl.uint32) + counter % (WIDTH // LANES)
    return signs(counter // (WIDTH // LANES), place, sample, draw, seed, LANES).reshape(ROWS, WIDTH)


@triton.jit
def probe_normals(inside, sample, draw, seed, ROWS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
                  DTYPE: tl.constexpr):  # fmt: skip
    """The normals of a tile, [ROWS, WIDTH]."""
    blocks = tl.cast(WIDTH // 4 if ROWS > 1 else 0xFFFFFFFF, tl.uint32)
    z = normals_of_tile(
        (inside // 4).to(tl.uint32), blocks, sample, draw, seed, ROWS * WIDTH // 4, ROWS > 1, WIDE, DTYPE
    )
    return z.reshape(ROWS, WIDTH)


@triton.jit
def terms(jv, inside, width, rows, sample, draw, seed, GAUSSIAN: tl.constexpr,
          ROWS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """v_i w_i summed by fours, as pairs [ROWS, WIDTH // 4]: of `width` elements of each of `rows` samples, which lie one after
    the other at `jv`, from element `inside` of the first on, a multiple of 128; `sample` is its global index.

    Relative to sum |v_i w_i|, rounding costs half an ulp in products of normals that are not half-precision numbers, whose
    products are exact; their sums of four are not, and cost 1 ulp.
    """
    HALF: tl.constexpr = jv.dtype.element_ty.primitive_bitwidth == 16
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    w = tl.load(jv + (row * width + column), mask=(column < width) & (row < rows), other=0.0).to(DTYPE)
    if GAUSSIAN:
        z = probe_normals(inside, sample, draw, seed, ROWS, WIDTH, HALF, DTYPE)
        v = z.to(jv.dtype.element_ty).to(DTYPE) * w
    elif w.dtype == tl.float64:
        v = tl.where(probe_signs(inside, sample, draw, seed, ROWS, WIDTH) < 0, -w, w)
    else:
        flip = probe_signs(inside, sample, draw, seed, ROWS, WIDTH) & -0x80000000
        v = (w.to(tl.int32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
    if HALF:
        return sum_of_fours(v, ROWS, WIDTH), tl.zeros([ROWS, WIDTH // 4], DTYPE)
    else:
        return pairs_of_fours(v, ROWS, WIDTH)


@triton.jit
def rounded(high, low):
    """The number a pair stands for; where a sum is not finite, what it lost is not a number."""
    return tl.where(high - high == 0.0, high + low, high)


@triton.jit(do_not_specialize=NOISE)
def hutchinson_dot_kernel(
    out, jv, seed: tl.uint64, draw: tl.uint32, first: tl.uint64, batch: tl.int64, n: tl.int64, parts: tl.int32,
    GAUSSIAN: tl.constexpr, WHOLE: tl.constexpr, LONG: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    PART: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Dots of ROWS samples of n elements, out[slot, row], or, not WHOLE, of a part of one sample as a pair, out[slot, row,
    part, 2]. slot, the grid's second axis, counts draws from `draw` on. LONG: a sample has more than one tile. ALIGNED: a power
    of two that divides n.
    """
    top, part = (tl.program_id(0) // parts).to(tl.int64) * ROWS, tl.program_id(0) % parts
    slot = tl.program_id(1)
    seed, draw = seed.to(tl.uint64), draw.to(tl.uint32) + slot.to(tl.uint32)
    sample = first.to(tl.uint64) + top.to(tl.uint64)
    line = slot.to(tl.int64) * batch + top
    begin = part.to(tl.int64) * (PART * WIDTH)
    jv += tl.multiple_of(line * n + begin, ALIGNED)
    rows, left = tl.minimum(batch - top, ROWS).to(tl.int32), n - begin

    width = tl.multiple_of(tl.minimum(left, WIDTH).to(tl.int32), ALIGNED)
    high, low = terms(jv, begin, width, rows, sample, draw, seed, GAUSSIAN, ROWS, WIDTH, DTYPE)
    if LONG:
        for turn in range(1, tl.minimum(tl.cdiv(left, WIDTH), PART).to(tl.int32)):
            done = turn * WIDTH
            width = tl.multiple_of(tl.minimum(left - done, WIDTH).to(tl.int32), ALIGNED)
            more, rest = terms(jv + done, begin + done, width, rows, sample, draw, seed, GAUSSIAN, ROWS, WIDTH, DTYPE)
            high, low = add_pairs(high, low, more, rest)
    high, low = sum_pairs(high, low, 1)
    index = tl.arange(0, ROWS)
    if WHOLE:
        tl.store(out + line + index, rounded(high, low), mask=index < rows)
    else:
        out += (line * parts + part) * 2
        tl.store(out + index, high)
        tl.store(out + 1 + index, low)


@triton.jit
def hutchinson_dot_finish(out, partial, parts: tl.int32, PARTS: tl.constexpr, DTYPE: tl.constexpr):
    """out[row] from the pairs of the parts of a sample, in their order."""
    row = tl.program_id(0).to(tl.int64)
    partial += row * parts * 2
    high = tl.zeros([PARTS], DTYPE)
    low = high
    for begin in range(0, parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        more = tl.load(partial + part * 2, mask=part < parts, other=0.0)
        rest = tl.load(partial + part * 2 + 1, mask=part < parts, other=0.0)
        high, low = add_pairs(high, low, more, rest)
    high, low = sum_pairs(high, low, 0)
    tl.store(out + row, rounded(high, low))


def hutchinson_dot_triton(jv: Tensor, seed: int, draws: Sequence[int], first: int, kind: str) -> Tensor:
    """`hutchinson_dot_reference`, with pairs of the accumulation dtype in place of float64."""
    jv = stored(jv)
    probes, batch, n = jv.shape
    inner, dtype = accumulation(jv.dtype), triton_dtype(jv.dtype)
    out = torch.empty((probes, batch), dtype=inner, device=jv.device)
    tile = TILE[jv.element_size()]
    width = min(tile, max(4, triton.next_power_of_2(n)))
    rows, parts = tile // width, -(-n // (PART * width))
    whole = parts == 1
    target = out if whole else torch.empty((probes, batch, parts, 2), dtype=inner, device=jv.device)
    for begin, end in runs(draws):
        launch(
            hutchinson_dot_kernel, (-(-batch // rows) * parts, end - begin), jv,
            target[begin:end], jv[begin:end], seed, draws[begin], first, batch, n, parts,
            GAUSSIAN=kind == "gaussian", WHOLE=whole, LONG=n > width, ROWS=rows, WIDTH=width, PART=PART,
            ALIGNED=min(n & -n, 16), DTYPE=dtype,
        )  # fmt: skip
    if not whole:
        launch(hutchinson_dot_finish, probes * batch, jv, out, target, parts, PARTS=PARTS, DTYPE=dtype)
    return out

"""Which counter each lane of a tile needs, and the normals of a whole tile, laid out as the tile's elements are.

A run's counters are numbered row by row, ceil(d / 4) to a sample of d elements; a tile is `COUNTERS` of them in a row. Where
d is a multiple of 4 the elements of a tile are contiguous in memory too.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.gpu.launch import bits
from halfbridge.kernels.gpu.normals import four_normals
from halfbridge.kernels.noise import DeviceNoise, Noise


class Tiling(NamedTuple):
    """How a state is cut into tiles: `tiles` of them; samples of d elements and of `blocks` counters.

    Without noise a tile is BLOCK elements in a row. With noise it is BLOCK // 4 counters in a row, and the same elements
    unless `ragged` (d is no multiple of 4). short, big: see `places` and `tile_start`.
    """

    tiles: int
    d: int = 0
    blocks: int = 0
    ragged: bool = False
    short: bool = False
    big: bool = False


def tiling(x: Tensor, block: int, noisy: bool) -> Tiling:
    n = x.numel()
    if n == 0 or not noisy:
        return Tiling(-(-n // block))
    d = n // len(x)
    blocks = -(-d // 4)
    counters = blocks * len(x)
    return Tiling(-(-4 * counters // block), d, blocks, d % 4 != 0, blocks < block // 4, counters >= 1 << 32)


def noise_arguments(noise: Noise | DeviceNoise | None, dtype: torch.dtype) -> tuple[Any, ...]:
    """(scale bits, seed, draw, first, scale, counter) as kernels take them: numbers, or pointers to what they are read from."""
    if noise is None:
        return 0, 0, 0, 0, None, None
    if isinstance(noise, DeviceNoise):
        return 0, 0, 0, 0, noise.scale.to(accumulation(dtype)), noise.counter.contiguous()
    return *bits([noise.scale], dtype), noise.seed, noise.draw, noise.first, None, None


@triton.jit
def key_and_counter(seed, draw, first, counter):
    """(seed, draw, first) as uint64, uint32, uint64: from memory where `counter` is a pointer."""
    if counter is not None:
        seed, draw, first = tl.load(counter), tl.load(counter + 1), tl.load(counter + 2)
    return seed.to(tl.uint64), draw.to(tl.uint32), first.to(tl.uint64)


@triton.jit
def tile_start(tile, blocks, COUNTERS: tl.constexpr, BIG: tl.constexpr):
    """(row, block in the row) of the tile's first counter, scalars; blocks: counters a row.

    BIG: the run has 2^32 counters or more, and the one division needs 64 bits, a call of some 80 instructions.
    """
    if BIG:
        begin = tile.to(tl.uint64) * COUNTERS
        row = begin // blocks.to(tl.uint64)
        block = (begin - row * blocks.to(tl.uint64)).to(tl.uint32)
    else:
        begin = tile.to(tl.uint32) * COUNTERS
        row = (begin // blocks).to(tl.uint64)
        block = begin - (begin // blocks) * blocks
    return row, block


@triton.jit
def places(t, block, blocks, SHORT: tl.constexpr):
    """(row offset, block in its row) of the t-th counters of a tile that begins at `block`, uint32.

    SHORT: a row has fewer counters than a tile. Otherwise at most one row ends in it, and no lane has to divide.
    """
    block += t.to(tl.uint32)
    if SHORT:
        row = block // blocks
        block -= row * blocks
    else:
        row = (block >= blocks).to(tl.uint32)
        block = tl.where(row != 0, block - blocks, block)
    return row, block


@triton.jit
def ragged(step, place, row, d, n):
    """(offsets, mask), [n, 4], of the elements of counters in rows of d elements, which need be no multiple of 4; n: of all
    rows. step, place: of `places`; row: the tile's first."""
    inside, lane = place.to(tl.int64) * 4, tl.arange(0, 4)[None, :]
    offsets = ((row + step.to(tl.uint64)).to(tl.int64) * d + inside)[:, None] + lane
    return offsets, (lane < (d - inside)[:, None]) & (offsets < n)


@triton.jit
def normals_at(row, block, sample, draw, seed, DTYPE: tl.constexpr):
    """[n, 4] normals of the counters (row, block), rows counted from the sample with global index `sample` (uint64)."""
    index = sample + row.to(tl.uint64)
    return four_normals(block, draw, index.to(tl.uint32), (index >> 32).to(tl.uint32), seed, DTYPE)


@triton.jit
def normals_of_tile(block, blocks, sample, draw, seed, COUNTERS: tl.constexpr, SHORT: tl.constexpr,
                    WIDE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """[4 COUNTERS] normals of a tile, in the order of its elements.

    WIDE: elements of 16 bits, of which a thread moves eight at once; it then makes the normals of two counters in a row, and
    nothing is exchanged between threads.
    """
    if WIDE:
        t = tl.arange(0, COUNTERS // 2) * 2
        row, place = places(t, block, blocks, SHORT)
        even = normals_at(row, place, sample, draw, seed, DTYPE)
        row, place = places(t + 1, block, blocks, SHORT)
        odd = normals_at(row, place, sample, draw, seed, DTYPE)
        return tl.join(even, odd).permute(0, 2, 1).reshape(4 * COUNTERS)
    else:
        row, place = places(tl.arange(0, COUNTERS), block, blocks, SHORT)
        return normals_at(row, place, sample, draw, seed, DTYPE).reshape(4 * COUNTERS)

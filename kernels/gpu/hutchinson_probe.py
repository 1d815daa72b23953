"""`hutchinson_probe` on a GPU: 128 signs a counter, spread over the threads that store them; and signs for other kernels."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.gpu.launch import NOISE, launch, runs
from halfbridge.kernels.gpu.noise import places, tile_start
from halfbridge.kernels.gpu.normals import philox

SIGNS = 128  # of a counter
BLOCK = 4096  # elements of a tile: 32 a thread, so that a thread's share of the counters costs 2 instructions each


@triton.jit
def signs(row, place, sample, draw, seed, LANES: tl.constexpr):
    """[n * max(1, LANES / 32), min(LANES, 32)] int32, negative for -1 (all but the top bit means nothing), in the order of
    the elements: the first LANES signs (a power of two up to 128) of the n counters (row, place), rows counted from the sample
    with global index `sample` (uint64).
    """
    index = sample + row.to(tl.uint64)
    w0, w1, w2, w3 = philox(place, draw, index.to(tl.uint32), (index >> 32).to(tl.uint32), seed)
    if LANES == 128:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(4 * w0.shape[0])
    elif LANES == 64:
        words = tl.join(w0, w1).reshape(2 * w0.shape[0])
    else:
        words = w0
    BITS: tl.constexpr = 32 if LANES > 32 else LANES
    return (words[:, None] << (31 - tl.arange(0, BITS)).to(tl.uint32)[None, :]).to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=[*NOISE, "start"])
def hutchinson_probe_kernel(
    out, batch: tl.int64, n: tl.int64, blocks: tl.uint32,
    seed: tl.uint64, draw: tl.uint32, first: tl.uint64, start: tl.uint32,
    COUNTERS: tl.constexpr, LANES: tl.constexpr, SHORT: tl.constexpr, BIG: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Signs of draws draw, draw + 1, ..., one a value of the grid's second axis, for `batch` samples of n elements in
    `blocks` counters; a tile is COUNTERS of these, of which LANES signs are used. start: the first counter of a sample.
    ALIGNED: a power of two that divides n.
    """
    tile, slot = tl.program_id(0), tl.program_id(1)
    blocks = blocks.to(tl.uint32)
    row, block = tile_start(tile, blocks, COUNTERS, BIG)
    step, place = places(tl.arange(0, COUNTERS), block, blocks, SHORT)
    sample, counter = first.to(tl.uint64) + row, place + start.to(tl.uint32)
    sign = signs(step, counter, sample, draw.to(tl.uint32) + slot.to(tl.uint32), seed.to(tl.uint64), LANES)

    inside = place.to(tl.int64)[:, None] * 128
    line = row.to(tl.int64) + step.to(tl.int64)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    left = tl.multiple_of(tl.where(line < batch, n - inside, 0), [1, ALIGNED])
    offsets = tl.multiple_of(slot.to(tl.int64) * batch * n + line * n + inside, [1, ALIGNED])
    v = tl.where(sign.reshape(COUNTERS, LANES) < 0, -1.0, 1.0).to(out.dtype.element_ty)
    tl.store(out + offsets + lane, v, mask=lane < left)


def hutchinson_probe_triton(out: Tensor, seed: int, draws: Sequence[int], first: int, start: int) -> None:
    """`hutchinson_probe_reference`: draws that follow on each other share a launch."""
    batch, n = out.shape[1:]
    blocks, lanes = -(-n // SIGNS), min(SIGNS, triton.next_power_of_2(n))
    counters = BLOCK // lanes
    for begin, end in runs(draws):
        launch(
            hutchinson_probe_kernel, (-(-batch * blocks // counters), end - begin), out,
            out[begin:end], batch, n, blocks, seed, draws[begin], first, start // SIGNS,
            COUNTERS=counters, LANES=lanes, SHORT=blocks < counters, BIG=batch * blocks >= 1 << 32,
            ALIGNED=min(n & -n, 16),
        )  # fmt: skip

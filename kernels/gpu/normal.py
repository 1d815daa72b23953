"""`normal` on a GPU: four normals a counter, made in registers and written once."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.gpu.launch import NOISE, launch, runs, triton_dtype
from halfbridge.kernels.gpu.noise import normals_at, normals_of_tile, places, ragged, tile_start, tiling
from halfbridge.kernels.normal import fill_reference

BLOCK = 1024  # elements of a tile


@triton.jit(do_not_specialize=NOISE)
def normal_kernel(
    out, n: tl.int64, d: tl.int64, blocks: tl.uint32,
    seed: tl.uint64, draw: tl.uint32, first: tl.uint64,
    RAGGED: tl.constexpr, SHORT: tl.constexpr, BIG: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Draws draw, draw + 1, ... of n elements each, one a value of the grid's second axis."""
    tile, slot = tl.program_id(0), tl.program_id(1)
    seed, draw, blocks = seed.to(tl.uint64), draw.to(tl.uint32) + slot.to(tl.uint32), blocks.to(tl.uint32)
    row, block = tile_start(tile, blocks, BLOCK // 4, BIG)
    sample, out = first.to(tl.uint64) + row, out + slot.to(tl.int64) * n
    if RAGGED:
        step, place = places(tl.arange(0, BLOCK // 4), block, blocks, SHORT)
        z = normals_at(step, place, sample, draw, seed, DTYPE)
        offsets, mask = ragged(step, place, row, d, n)
    else:
        z = normals_of_tile(block, blocks, sample, draw, seed, BLOCK // 4, SHORT, False, DTYPE)
        start = tile.to(tl.int64) * BLOCK
        out += start
        offsets = tl.arange(0, BLOCK)
        mask = offsets < n - start
    tl.store(out + offsets, z, mask=mask)


def fill_triton(out: Tensor, seed: int, draws: Sequence[int], first: int, start: int) -> None:
    """`normal.fill_reference`: draws that follow on each other share a launch."""
    if start:  # a part of a sample: only the eager reference asks for parts, to save memory
        fill_reference(out, seed, draws, first, start)
        return
    t = tiling(out[0], BLOCK, True)
    for begin, end in runs(draws):
        launch(
            normal_kernel, (t.tiles, end - begin), out,
            out[begin:end], out[0].numel(), t.d, t.blocks, seed, draws[begin], first,
            RAGGED=t.ragged, SHORT=t.short, BIG=t.big, BLOCK=BLOCK, DTYPE=triton_dtype(out.dtype),
        )  # fmt: skip

"""`combine` in one pass: every vector is read once, the normals are made in registers, the result is written once."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.aliasing import as_stored, dense, same_elements, stored
from halfbridge.kernels.arguments import accumulation, on_host, recorded
from halfbridge.kernels.combine import combine_reference
from halfbridge.kernels.combine_operator import combine_whole
from halfbridge.kernels.gpu.launch import COEFFICIENTS, NOISE, bits, coefficient, launch, triton_dtype
from halfbridge.kernels.gpu.noise import (
    key_and_counter,
    noise_arguments,
    normals_at,
    normals_of_tile,
    places,
    ragged,
    tile_start,
    tiling,
)
from halfbridge.kernels.noise import DeviceNoise, Noise
from halfbridge.kernels.operators import transforming

VECTORS = 6  # inputs of one launch


@triton.jit
def term(v, pattern, table, j: tl.constexpr, offsets, mask, DTYPE: tl.constexpr):
    """c_j v_j of a tile."""
    return coefficient(pattern, table, j, DTYPE) * tl.load(v + offsets, mask=mask, other=0.0).to(DTYPE)


@triton.jit(do_not_specialize=[*COEFFICIENTS, *NOISE])
def combine_kernel(
    out, v0, v1, v2, v3, v4, v5,
    b0: tl.int64, b1: tl.int64, b2: tl.int64, b3: tl.int64, b4: tl.int64, b5: tl.int64, table,
    scale_bits: tl.int64, seed: tl.uint64, draw: tl.uint32, first: tl.uint64, scale, counter,
    n: tl.int64, d: tl.int64, blocks: tl.uint32,
    COUNT: tl.constexpr, NOISE: tl.constexpr, RAGGED: tl.constexpr, SHORT: tl.constexpr, BIG: tl.constexpr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """out = sum_j c_j v_j (+ scale N): n elements, contiguous, in samples of d, of `blocks` counters.

    The numbers come by value (b*, scale_bits, seed, draw, first) unless their pointer is given: table (coefficients), scale
    and counter (seed, draw, first). RAGGED: d is no multiple of 4, so a tile is rows of a counter's four elements.
    """
    tile = tl.program_id(0)
    if NOISE:
        seed, draw, first = key_and_counter(seed, draw, first, counter)
        row, block = tile_start(tile, blocks.to(tl.uint32), BLOCK // 4, BIG)
    if NOISE and RAGGED:
        step, place = places(tl.arange(0, BLOCK // 4), block, blocks.to(tl.uint32), SHORT)
        offsets, mask = ragged(step, place, row, d, n)
    else:
        start = tile.to(tl.int64) * BLOCK
        out += start
        v0, v1, v2, v3, v4, v5 = v0 + start, v1 + start, v2 + start, v3 + start, v4 + start, v5 + start
        offsets = tl.arange(0, BLOCK)
        mask = offsets < n - start

    if COUNT > 0:
        total = term(v0, b0, table, 0, offsets, mask, DTYPE)
    else:
        total = tl.zeros(offsets.shape, DTYPE)
    if COUNT > 1:
        total += term(v1, b1, table, 1, offsets, mask, DTYPE)
    if COUNT > 2:
        total += term(v2, b2, table, 2, offsets, mask, DTYPE)
    if COUNT > 3:
        total += term(v3, b3, table, 3, offsets, mask, DTYPE)
    if COUNT > 4:
        total += term(v4, b4, table, 4, offsets, mask, DTYPE)
    if COUNT > 5:
        total += term(v5, b5, table, 5, offsets, mask, DTYPE)

    if NOISE:
        sample = first + row
        if RAGGED:
            z = normals_at(step, place, sample, draw, seed, DTYPE)
        else:
            WIDE: tl.constexpr = out.dtype.element_ty.primitive_bitwidth == 16
            z = normals_of_tile(block, blocks.to(tl.uint32), sample, draw, seed, BLOCK // 4, SHORT, WIDE, DTYPE)
        total += coefficient(scale_bits, scale, 0, DTYPE) * z
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=mask)


def combine_triton(
    vectors: Sequence[Tensor],
    coefficients: Sequence[float] | Tensor,
    noise: Noise | DeviceNoise | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`combine_reference` in one launch for up to six vectors; more take a launch for every five. Under a transform of
    torch.func or in forward mode the reference itself runs."""
    if transforming():
        numbers = coefficients.tolist() if isinstance(coefficients, Tensor) else coefficients
        return combine_reference(vectors, numbers, on_host(noise) if isinstance(noise, DeviceNoise) else noise, out)
    if recorded(vectors, out):
        return combine_whole(vectors, coefficients, noise)
    flat, target = layouts(vectors, noise is not None, out)
    if len(flat) <= VECTORS:
        once(target, flat, coefficients, noise)
    else:
        chain(target, flat, coefficients, noise)
    return target if out is None or target is out else out.copy_(target)


def chain(target: Tensor, vectors: list[Tensor], coefficients: Sequence[float] | Tensor, noise: Any) -> None:
    """Six vectors, then five at a time beside the sum so far, which is kept in the accumulation dtype."""
    inner = accumulation(target.dtype)
    one = torch.ones((), dtype=inner, device=target.device) if isinstance(coefficients, Tensor) else 1.0
    pairs = sorted(zip(vectors, coefficients, strict=True), key=lambda p: not same_elements(p[0], target))
    later = any(same_elements(v, target) for v, _ in pairs[VECTORS:])  # the target is not written before it is read
    total = target if target.dtype == inner and not later else torch.empty_like(target, dtype=inner)
    todo, begun = pairs, False
    while todo:
        ahead = [(total, one)] if begun else []
        now, todo = ahead + todo[: VECTORS - len(ahead)], todo[VECTORS - len(ahead) :]
        taken, numbers = zip(*now, strict=True)
        table = torch.stack([c.to(inner) for c in numbers]) if isinstance(coefficients, Tensor) else numbers
        once(total if todo else target, taken, table, None if todo else noise)
        begun = True


def once(target: Tensor, vectors: Sequence[Tensor], coefficients: Sequence[float] | Tensor, noise: Any) -> None:
    """One launch; every tensor has its elements in the same order, and `target` may be one of them."""
    spare = VECTORS - len(vectors)
    if isinstance(coefficients, Tensor):
        patterns, table = (0,) * VECTORS, coefficients.to(target.device, accumulation(target.dtype)).contiguous()
    else:
        patterns, table = (*bits(coefficients, target.dtype), *(0,) * spare), None
    block = tile_size(target, len(vectors), noise is not None)
    t = tiling(target, block, noise is not None)
    launch(
        combine_kernel, t.tiles, target,
        target, *vectors, *(target,) * spare, *patterns, table, *noise_arguments(noise, target.dtype),
        target.numel(), t.d, t.blocks,
        COUNT=len(vectors), NOISE=noise is not None, RAGGED=t.ragged, SHORT=t.short, BIG=t.big,
        BLOCK=block, DTYPE=triton_dtype(target.dtype),
    )  # fmt: skip


def tile_size(target: Tensor, count: int, noisy: bool) -> int:
    """Elements of a tile. 2048, 16 a thread, share what is computed once: 5 instructions an element less than with 1024.

    1024 where the registers of 16 would cost more than they save: float64, many inputs, rows that are no multiple of 4.
    16-bit elements need 2048 where 64 threads are a warp: else a thread has less than the two counters that it moves at once.
    """
    if noisy and target.numel() and target.numel() // len(target) % 4:
        return 1024
    return 2048 if target.element_size() == 2 or (target.element_size() == 4 and count <= 3) else 1024


def layouts(vectors: Sequence[Tensor], noisy: bool, out: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The vectors and the output with elements in one order in memory, without holes; copies of those that are not.

    Sums without noise run in any such order, that of channels_last as well; normals are numbered row by row.
    """
    like = vectors[0] if vectors else out
    assert like is not None
    if not noisy and not like.is_contiguous() and dense(like):
        kept = [v if v.stride() == like.stride() else torch.empty_like(like).copy_(v) for v in vectors]
        same = out is None or out.stride() == like.stride()
        return kept, out if out is not None and same else torch.empty_like(like)
    kept = [stored(v) for v in vectors]
    if out is not None and as_stored(out):
        return kept, out
    return kept, torch.empty(like.shape, dtype=like.dtype, device=like.device)

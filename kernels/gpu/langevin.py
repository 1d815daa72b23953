"""`langevin` on a GPU: norms and update in one launch where a sample fits a tile, else in two passes; z is never stored.

Squares of float32 and bfloat16 numbers leave float32 (WILD) and are scaled; float64's are as in the reference, and those of
float16 numbers and of normals fit. A float32 norm is right to 2 ulp, to 4 where it is that of parts; each division and root of a
GPU adds one or two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.aliasing import as_stored, stored
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.gpu.launch import NOISE, bits, coefficient, launch, triton_dtype
from halfbridge.kernels.gpu.noise import key_and_counter, noise_arguments, normals_of_tile
from halfbridge.kernels.gpu.sums import add_squares, exponent, norms, power_of_two, squares
from halfbridge.kernels.noise import DeviceNoise, Noise

NUMBERS = [*NOISE, "snr", "factor", "table"]  # like the noise, not what a kernel is compiled for
ROW = 4096  # elements of the longest sample that one program holds: score, z and their squares stay in registers
TILE = {2: 2048, 4: 1024, 8: 512}  # bytes of an element -> elements of a tile of a long sample
PART = 8  # tiles of a part; samples are cut into parts by their size alone, so their bits do not depend on the batch


@triton.jit
def square(v):
    """(k, v^2 / 4^k), which neither overflows nor vanishes."""
    k = exponent(v)
    v *= power_of_two(-k, v.dtype)
    return k, v * v


@triton.jit
def norm(v, ROWS: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr):
    """Euclidean norm of each row."""
    k, total = squares(v, ROWS, WIDTH, SCALED)
    return norms(k, total, tl.zeros_like(total), SCALED)


@triton.jit
def step_size(of_z, of_score, snr, scale, factor, table, DTYPE: tl.constexpr):
    """e = 2 factor (snr |z| / |scale score|)^2 from the two norms: (scale e, sqrt(2 e)), without e, which may vanish where these
    do not. table: (snr, scale, factor) or None."""
    snr, scale = coefficient(snr, table, 0, DTYPE), coefficient(scale, table, 1, DTYPE)
    root = tl.sqrt(coefficient(factor, table, 2, DTYPE))
    ratio = root * (snr * of_z / tl.abs(scale * of_score))
    return 2.0 * ratio * (scale * ratio), 2.0 * ratio


@triton.jit
def normals_or_load(z, block, blocks, sample, draw, seed, offsets, mask,
                    SIZE: tl.constexpr, SHORT: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """z of SIZE elements: from memory where it is a tensor, else made from its counters; 0 outside the mask."""
    if z is None:
        made = normals_of_tile(block, blocks, sample, draw, seed, SIZE // 4, SHORT, WIDE, DTYPE)
        return tl.where(mask, made.reshape(offsets.shape), 0.0)
    else:
        return tl.load(z + offsets, mask=mask, other=0.0).to(DTYPE)


@triton.jit(do_not_specialize=NUMBERS)
def langevin_rows(
    out, x, score, z, lengths, snr: tl.int64, scale: tl.int64, factor: tl.int64, table,
    seed: tl.uint64, draw: tl.uint32, first: tl.uint64, counter, batch: tl.int64, d: tl.int64,
    PASS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """ROWS samples of at most WIDTH elements. PASS "whole": the step, everything read once. With norms of the batch: first
    "norms", to lengths[row] = (|score|, |z|), then "update", from the one pair in lengths.
    """
    top = tl.program_id(0).to(tl.int64) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    offsets, mask = top * d + row * d + column, (column < d) & (row < batch - top)
    seed, draw, first = key_and_counter(seed, draw, first, counter)
    WILD: tl.constexpr = score.dtype.element_ty == tl.float32 or score.dtype.element_ty == tl.bfloat16
    WIDE: tl.constexpr = score.dtype.element_ty.primitive_bitwidth == 16
    s = tl.load(score + offsets, mask=mask, other=0.0).to(DTYPE)
    sample = first + top.to(tl.uint64)
    n = normals_or_load(z, 0, WIDTH // 4, sample, draw, seed, offsets, mask, ROWS * WIDTH, True, WIDE, DTYPE)
    if PASS == "update":
        of_score, of_z = tl.load(lengths), tl.load(lengths + 1)
    else:
        of_score, of_z = norm(s, ROWS, WIDTH, WILD), norm(n, ROWS, WIDTH, WILD and z is not None)
    if PASS == "norms":
        place = top + tl.arange(0, ROWS)
        tl.store(lengths + place * 2, of_score, mask=place < batch)
        tl.store(lengths + place * 2 + 1, of_z, mask=place < batch)
    else:
        drift, spread = step_size(of_z, of_score, snr, scale, factor, table, DTYPE)
        if PASS == "whole":
            drift, spread = drift[:, None], spread[:, None]
        result = tl.load(x + offsets, mask=mask).to(DTYPE) + drift * s + spread * n
        tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def tile_squares(score, z, row, inside, d, seed, draw, first, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """`squares` of score and of z, over TILE elements of a sample from `inside` on."""
    column = tl.arange(0, TILE)[None, :]
    offsets, mask = row.to(tl.int64) * d + inside + column, column < d - inside
    s = tl.load(score + offsets, mask=mask, other=0.0).to(DTYPE)
    block, sample = (inside // 4).to(tl.uint32), first + row.to(tl.uint64)
    n = normals_or_load(z, block, 0xFFFFFFFF, sample, draw, seed, offsets, mask, TILE, False, False, DTYPE)
    WILD: tl.constexpr = score.dtype.element_ty == tl.float32 or score.dtype.element_ty == tl.bfloat16
    k, total = squares(s, 1, TILE, WILD)
    z_k, z_total = squares(n, 1, TILE, WILD and z is not None)
    return k, total, z_k, z_total


@triton.jit(do_not_specialize=NUMBERS)
def langevin_norms(
    partial, score, z, seed: tl.uint64, draw: tl.uint32, first: tl.uint64, counter, d: tl.int64, parts: tl.int32,
    TILE: tl.constexpr, PART: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Norms of score and z over a part of a sample, partial[row, part, 2]."""
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    seed, draw, first = key_and_counter(seed, draw, first, counter)
    begin = part.to(tl.int64) * (PART * TILE)
    WILD: tl.constexpr = score.dtype.element_ty == tl.float32 or score.dtype.element_ty == tl.bfloat16
    k, high, z_k, z_high = tile_squares(score, z, row, begin, d, seed, draw, first, TILE, DTYPE)
    low, z_low = tl.zeros_like(high), tl.zeros_like(z_high)
    for turn in range(1, tl.minimum(PART, tl.cdiv(d - begin, TILE))):
        a, b, c, e = tile_squares(score, z, row, begin + turn * TILE, d, seed, draw, first, TILE, DTYPE)
        k, high, low = add_squares(k, high, low, a, b, WILD)
        z_k, z_high, z_low = add_squares(z_k, z_high, z_low, c, e, WILD and z is not None)
    to = partial + tl.program_id(0).to(tl.int64) * 2 + tl.arange(0, 1)
    tl.store(to, norms(k, high, low, WILD))
    tl.store(to + 1, norms(z_k, z_high, z_low, WILD and z is not None))


@triton.jit
def langevin_finish(lengths, partial, parts: tl.int32, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """lengths[row] = (|score|, |z|) from the norms of the parts of a sample, in their order."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)[None, :]
    high = tl.zeros([1, WIDTH], DTYPE)
    k, low, z_high, z_low = exponent(high), high, high, high
    z_k = k
    for begin in range(0, parts, WIDTH):
        part = begin + place
        at, mask = partial + (row * parts + part) * 2, part < parts
        a, b = square(tl.load(at, mask=mask, other=0.0))
        c, e = square(tl.load(at + 1, mask=mask, other=0.0))
        k, high, low = add_squares(k, high, low, a, b, True)
        z_k, z_high, z_low = add_squares(z_k, z_high, z_low, c, e, True)
    to = lengths + row * 2 + tl.arange(0, 1)
    tl.store(to, norms(k, high, low, True))
    tl.store(to + 1, norms(z_k, z_high, z_low, True))


@triton.jit(do_not_specialize=NUMBERS)
def langevin_update(
    out, x, score, z, lengths, stride: tl.int64, snr: tl.int64, scale: tl.int64, factor: tl.int64, table,
    seed: tl.uint64, draw: tl.uint32, first: tl.uint64, counter, d: tl.int64, tiles: tl.int32,
    TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """x + e s + sqrt(2 e) z for a tile of a sample, e from lengths[row * stride]."""
    row, tile = (tl.program_id(0) // tiles).to(tl.int64), (tl.program_id(0) % tiles).to(tl.int64)
    seed, draw, first = key_and_counter(seed, draw, first, counter)
    WIDE: tl.constexpr = out.dtype.element_ty.primitive_bitwidth == 16
    inside, column = tile * TILE, tl.arange(0, TILE)
    offsets, mask = row * d + inside + column, column < d - inside
    of_score, of_z = tl.load(lengths + row * stride), tl.load(lengths + row * stride + 1)
    drift, spread = step_size(of_z, of_score, snr, scale, factor, table, DTYPE)
    block, sample = (inside // 4).to(tl.uint32), first + row.to(tl.uint64)
    n = normals_or_load(z, block, 0xFFFFFFFF, sample, draw, seed, offsets, mask, TILE, False, WIDE, DTYPE)
    s = tl.load(score + offsets, mask=mask).to(DTYPE)
    result = tl.load(x + offsets, mask=mask).to(DTYPE) + drift * s + spread * n
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


def langevin_triton(
    x: Tensor, score: Tensor, noise: Noise | DeviceNoise | Tensor, snr: float, scale: float | Tensor,
    factor: float | Tensor, norm: str,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`langevin_reference` without its look at the norms, which would stall the stream: where a score is zero the sample
    becomes NaN."""
    target = out if out is not None and as_stored(out) else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        z = stored(noise) if isinstance(noise, Tensor) else None
        _, *words, _, counter = noise_arguments(None if isinstance(noise, Tensor) else noise, x.dtype)
        source = (stored(x), stored(score), z)
        run = by_rows if x.numel() // len(x) <= ROW else in_two_passes
        run(target, source, numbers(snr, scale, factor, x), (*words, counter), norm)
    return target if out is None or target is out else out.copy_(target)


def numbers(snr: float, scale: float | Tensor, factor: float | Tensor, like: Tensor) -> tuple[Any, ...]:
    """(snr, scale, factor) as bits and no table, or, where one of them lies in memory, as a table."""
    given = [c for c in (snr, scale, factor) if not isinstance(c, Tensor)]
    if len(given) == 3:
        return *bits(given, like.dtype), None
    inner = accumulation(like.dtype)
    table = [  # a copy of a number from the host could not be captured
        c.to(inner) if isinstance(c, Tensor) else torch.full((), c, dtype=inner, device=like.device)
        for c in (snr, scale, factor)
    ]
    return 0, 0, 0, torch.stack(table)


def by_rows(out: Tensor, source: tuple[Any, ...], numbers: tuple[Any, ...], words: tuple[Any, ...], norm: str) -> None:
    """Samples that fit a tile, several to a program."""
    d, inner = out.numel() // len(out), accumulation(out.dtype)
    width = max(4, triton.next_power_of_2(d))
    rows = max(1, max(8, ROW // 4) // width)  # eight elements: a thread's share of 16-bit ones
    norms = None if norm == "sample" else torch.empty((len(out), 2), dtype=inner, device=out.device)
    for part in ("whole",) if norms is None else ("norms", "update"):
        launch(
            langevin_rows, -(-len(out) // rows), out,
            out, *source, norms, *numbers, *words, len(out), d,
            PASS=part, ROWS=rows, WIDTH=width, DTYPE=triton_dtype(out.dtype), num_warps=8 if width == ROW else 4,
        )  # fmt: skip
        norms = None if norms is None else mean(norms)


def in_two_passes(
    out: Tensor, source: tuple[Any, ...], numbers: tuple[Any, ...], words: tuple[Any, ...], norm: str
) -> None:
    """Samples longer than a tile: their parts' norms, their sums, the update."""
    batch, inner, constants = len(out), accumulation(out.dtype), {"DTYPE": triton_dtype(out.dtype)}
    d = out.numel() // batch
    tile = TILE[out.element_size()]
    parts, tiles = -(-d // (PART * tile)), -(-d // tile)
    partial = torch.empty((batch, parts, 2), dtype=inner, device=out.device)
    norms = torch.empty((batch, 2), dtype=inner, device=out.device)
    launch(
        langevin_norms, batch * parts, out, partial, *source[1:], *words, d, parts, TILE=tile, PART=PART, **constants
    )
    launch(langevin_finish, batch, out, norms, partial, parts, WIDTH=64, **constants)
    norms, stride = (norms, 2) if norm == "sample" else (mean(norms), 0)
    launch(
        langevin_update, batch * tiles, out,
        out, *source, norms, stride, *numbers, *words, d, tiles, TILE=tile, **constants,
    )  # fmt: skip


def mean(norms: Tensor) -> Tensor:
    """Means over the batch, (2,): the samples meet here, as Song et al.'s do."""
    return norms.mean(0, dtype=torch.float64).to(norms.dtype)

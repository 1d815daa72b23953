"""`mixture_field` on a GPU: one kernel for small d, two for large d, then the parts of the components are put together.

Everything that decides the order of additions depends on k, d and the dtype alone, so a sample's bits do not depend on its
batch. Samples go in blocks, so that buffers hold some ENTRIES numbers whatever n is.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from halfbridge.kernels.aliasing import stored
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.gpu.launch import bits, launch, triton_dtype
from halfbridge.kernels.gpu.mixture_fused import fused_kernel
from halfbridge.kernels.gpu.mixture_parts import finish_kernel, squares_kernel
from halfbridge.kernels.gpu.mixture_split import exponents_kernel, sums_kernel
from halfbridge.kernels.mixture_reference import Components, Pair

ENTRIES = 1 << 24  # of the buffers of one block of samples: 64 MB of float32
LENGTH = 4096  # components of a part, which a program takes in turn
FUSED = {torch.float32: 32, torch.float64: 16}  # d of the fused kernel at most: registers of a thread hold so many sums
PAIRS = {torch.float32: 8, torch.float64: 4}  # of sample and component that one of its threads has at most
SAMPLES = 16  # of the tiles for large d
DEPTH = 8  # what a thread sums of a tile
LANES = {torch.float32: 128, torch.float64: 64}  # components of a tile of exponents
WIDTH = {torch.float32: 128, torch.float64: 64}  # coordinates of a tile of sums
LOWEST = {torch.float32: -3e38, torch.float64: -1e300}  # stands for -inf where a difference is taken
GONE = {torch.float32: -104.0, torch.float64: -746.0}  # exp is 0 below
FAR = 4.0  # reaches from the origin, from where |alpha m|^2 - 2 alpha x.m is better than |x - alpha m|^2


class Numbers(NamedTuple):
    """What kernels are told of the components: vectors of k or None, else bits; 0-dim tensors or None, else bits."""

    bias: Tensor
    half: Tensor | None
    half_bits: int
    narrower: Tensor | None
    gain: Tensor | None
    gain_bits: int
    alpha: int
    offset: int
    widest: Tensor | None
    level: Tensor | None
    level_bits: int
    limit: Tensor | None
    limit_bits: int


class Tile(NamedTuple):
    """Of the fused kernel: d rounded up, samples, components."""

    d: int
    samples: int
    lanes: int


def mixture_field_triton(x: Tensor, components: Components, field: bool, density: bool) -> Pair:
    """`mixture_field_reference` in float32 (float64 for float64 x), streamed."""
    (n, d), k = x.shape, len(components.means)
    inner = accumulation(x.dtype)
    x = stored(x)
    numbers = numbers_of(components, d, inner)
    out = torch.empty_like(x) if field else None
    densities = torch.empty(n, dtype=inner, device=x.device) if density else None
    squares = squared_lengths(x, inner)
    fused = d <= FUSED[inner]
    parts = -(-k // LENGTH)
    tile = fused_tile(d, k, inner)
    unit = max(tile.samples, SAMPLES) if fused else SAMPLES
    height = max(1, ENTRIES // max(parts * d, 0 if fused else k) // unit) * unit
    for i in range(0, n, height):
        rows = slice(i, i + height)
        made = (x[rows], squares[rows], components, numbers, parts, field)
        finish(
            None if out is None else out[rows], None if densities is None else densities[rows], squares[rows], numbers,
            *(by_fused(*made, tile) if fused else by_split(*made)),
        )  # fmt: skip
    return out, densities


def by_fused(
    x: Tensor, squares: Tensor, components: Components, numbers: Numbers, parts: int, field: bool, tile: Tile
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(tops, totals, sums) of parts of the components."""
    (n, d), inner = x.shape, squares.dtype
    means = components.means
    tops, totals = (x.new_empty((parts, n), dtype=inner) for _ in range(2))  # both begin on 16 bytes, whatever n is
    sums = x.new_empty((parts, n, d), dtype=inner) if field else None
    launch(
        fused_kernel, (-(-n // tile.samples), parts), x,
        x, squares, numbers.limit, numbers.limit_bits, means, *numbers[:8], tops, totals, sums,
        n, len(means), d, *means.stride(), LENGTH, **terms(components, field),
        BD=tile.d, BN=tile.samples, BK=tile.lanes, LOWEST=LOWEST[inner], DTYPE=triton_dtype(inner),
    )  # fmt: skip
    return tops, totals, sums


def by_split(
    x: Tensor, squares: Tensor, components: Components, numbers: Numbers, parts: int, field: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same; tops is (1, n), one maximum for all parts."""
    (n, d), inner = x.shape, squares.dtype
    means, k = components.means, len(components.means)
    lanes = LANES[inner]
    tiles = -(-k // lanes)
    logits, peaks = x.new_empty((n, k), dtype=inner), x.new_empty((n, tiles), dtype=inner)
    common: dict[str, Any] = {"DEPTH": DEPTH, "BN": SAMPLES, "BK": lanes, "DTYPE": triton_dtype(inner)}
    across = -(-n // SAMPLES)
    launch(
        exponents_kernel, across * tiles, x,
        x, squares, numbers.limit, numbers.limit_bits, means, *numbers[:4], numbers.alpha, logits, peaks,
        n, k, d, *means.stride(), tiles, across, **common,
    )  # fmt: skip
    tops = peaks.amax(1, keepdim=True).mT
    totals = x.new_empty((parts, n), dtype=inner)
    sums = x.new_empty((parts, n, d), dtype=inner) if field else None
    width = min(WIDTH[inner], triton.next_power_of_2(d))
    launch(
        sums_kernel, (across, -(-d // width) if field else 1, parts), x,
        x, means, logits, peaks, tops, *numbers[4:8], totals, sums, n, k, d, *means.stride(), tiles, LENGTH // lanes,
        **terms(components, field), GONE=GONE[inner], WIDTH=width, **common,
    )  # fmt: skip
    return tops, totals, sums


def finish(
    out: Tensor | None, density: Tensor | None, squares: Tensor, numbers: Numbers,
    tops: Tensor, totals: Tensor, sums: Tensor | None,
) -> None:  # fmt: skip
    """Parts put together, into `out` and `density`."""
    parts, n = totals.shape
    d = 1 if sums is None else sums.shape[2]
    width = min(WIDTH[squares.dtype], triton.next_power_of_2(d))
    launch(
        finish_kernel, (-(-n // SAMPLES), -(-d // width)), totals,
        out, density, tops, totals, sums, squares, numbers.limit, numbers.limit_bits, numbers.widest, numbers.half_bits,
        numbers.level, numbers.level_bits, n, d, parts, 0 if len(tops) == 1 else n,
        FIELD=out is not None, DENSITY=density is not None, ROWS=SAMPLES, WIDTH=width, DTYPE=triton_dtype(squares.dtype),
    )  # fmt: skip


def terms(components: Components, field: bool) -> dict[str, bool]:
    """Which terms of gain (x - alpha m) + offset m there are to sum."""
    shift = components.offset != 0.0
    different = isinstance(components.gain, Tensor) or components.gain != 0.0 or not shift
    return {"FIELD": field, "DIFFERENCE": different, "SHIFT": shift}


def numbers_of(components: Components, d: int, inner: torch.dtype) -> Numbers:
    """Made in float64, then rounded."""
    means, log_weights, s, gain, alpha, offset, reach = components
    level: Any = -0.5 * d * math.log(2 * math.pi)
    half = narrower = widest = limit = None
    if isinstance(s, Tensor):
        s = s.double()
        bias, top = log_weights.double() - 0.5 * d * s.log(), s.amax()
        most = bias.amax()
        bias, level = (bias - most).to(inner), (most + level).to(inner)  # float32 keeps what weights differ by
        half, narrower, widest = (t.to(inner) for t in (-0.5 / s, -0.5 * (top - s) / (s * top), -0.5 / top))
    else:
        bias, level = log_weights.to(inner), level - 0.5 * d * math.log(s)
    if reach is None:
        limit = squared_lengths(means, inner).amax() * (FAR * alpha) ** 2
    common = [
        0.0 if isinstance(s, Tensor) else -0.5 / s,
        0.0 if isinstance(gain, Tensor) else gain,
        alpha,
        offset,
        0.0 if isinstance(level, Tensor) else level,
        0.0 if reach is None else min((FAR * alpha * reach) ** 2, torch.finfo(inner).max),
    ]
    half_bits, gain_bits, alpha_bits, offset_bits, level_bits, limit_bits = bits(common, inner)
    gains = gain.to(inner).contiguous() if isinstance(gain, Tensor) else None
    return Numbers(
        bias.contiguous(), half, half_bits, narrower, gains, gain_bits, alpha_bits, offset_bits,
        widest, level if isinstance(level, Tensor) else None, level_bits, limit, limit_bits,
    )  # fmt: skip


def squared_lengths(t: Tensor, inner: torch.dtype) -> Tensor:
    """|t_i|^2 of the rows, (rows,)."""
    rows, d = t.shape
    out = t.new_empty(rows, dtype=inner)
    width = min(1024, triton.next_power_of_2(d))
    launch(
        squares_kernel, -(-rows // (1024 // width)), t,
        t, out, rows, d, *t.stride(), ROWS=1024 // width, WIDTH=width, DTYPE=triton_dtype(inner),
    )  # fmt: skip
    return out


def fused_tile(d: int, k: int, inner: torch.dtype) -> Tile:
    """Lanes over the components, as many samples as the registers hold."""
    wide = triton.next_power_of_2(d)
    pairs = max(1, min(PAIRS[inner], FUSED[inner] // wide))
    lanes = min(128 if wide <= 8 else 64 if wide == 16 else 32, triton.next_power_of_2(k))
    return Tile(wide, pairs * 128 // lanes, lanes)

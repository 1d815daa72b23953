"""The scalings around a network on a GPU: they are found where they are used, from each sample's sigma, and every state is
read once.

A tile is BLOCK elements in a row. Where samples are at least as long, it meets two of them at most, and their scalings are
scalars; of shorter samples every element finds its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.edm_precondition import empty_like
from halfbridge.kernels.gpu.launch import bits, coefficient, launch, triton_dtype

BLOCK = (
    1024  # elements of a tile: 8 a thread; twice as many of 16 bits, for AMD's wider waves move 16 bytes a thread too
)
LABELS = tl.constexpr(512)
WORD = 1 << 32


@triton.jit
def down_to_one(x):
    """The power of two that takes x > 0 to [1, 2), or as near as a normal number does."""
    if x.dtype == tl.float64:
        k = tl.minimum(tl.maximum(x.to(tl.int64, bitcast=True) >> 52, 1), 2045)
        return ((2046 - k) << 52).to(tl.float64, bitcast=True)
    else:
        k = tl.minimum(tl.maximum(x.to(tl.int32, bitcast=True) >> 23, 1), 253)
        return ((254 - k) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scaling(sigma, sigma_data, PART: tl.constexpr):
    """c_in, c_skip or c_out. Both numbers are divided by a power of two near the larger one, so that no square overflows, and
    one vanishes only beside the other. Newton's steps make up for the approximate root of a GPU."""
    down = down_to_one(tl.maximum(tl.abs(sigma), sigma_data))
    s, d = sigma * down, sigma_data * down
    square = s * s + d * d
    inverse = tl.rsqrt(square)
    inverse += 0.5 * inverse * tl.fma(-square * inverse, inverse, 1.0)
    if PART == "into":
        return inverse * down
    elif PART == "skip":
        reciprocal = inverse * inverse
        return d * d * (reciprocal + reciprocal * tl.fma(-square, reciprocal, 1.0))
    else:
        return tl.where(tl.abs(sigma) < sigma_data, d * inverse * sigma, s * inverse * sigma_data)


@triton.jit
def sample_scaling(sigma, sigma_data, first, last, start, d, lane, mask, PART: tl.constexpr, SHORT: tl.constexpr):
    """The scaling of each element of a tile that begins at element `start`, in sample `first`; `last`: the last sample."""
    if SHORT:
        step = (lane + (start - first * d).to(tl.int32)) // d.to(tl.int32)
        return scaling(tl.load(sigma + first + step, mask=mask, other=1.0), sigma_data, PART)
    else:
        edge = tl.minimum((first + 1) * d - start, 1 << 30).to(tl.int32)
        here = scaling(tl.load(sigma + first), sigma_data, PART)
        then = scaling(tl.load(sigma + tl.minimum(first + 1, last)), sigma_data, PART)
        return tl.where(lane < edge, here, then)


@triton.jit(do_not_specialize=["sigma_data"])
def edm_kernel(
    out, x, y, label, sigma, sigma_data: tl.int64, n: tl.int64, d: tl.int64, batch: tl.int64,
    PART: tl.constexpr, SHORT: tl.constexpr, BIG: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """out = c x, c the scaling PART, or c_skip x + c_out y where y is given: n elements in samples of d.

    label: receives ln(sigma) / 4 of each sample, if given. BIG: n is 2^32 or more, and the one division needs 64 bits.
    ALIGNED: a power of two that divides n.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if BIG:
        first = start // d
    else:
        first = (start.to(tl.uint32) // d.to(tl.uint32)).to(tl.int64)
    lane = tl.max_contiguous(
        tl.arange(0, BLOCK), 128 // out.dtype.element_ty.primitive_bitwidth
    )  # as the output is written
    mask = lane < tl.multiple_of(tl.minimum(n - start, BLOCK).to(tl.int32), ALIGNED)
    width = coefficient(sigma_data, None, 0, DTYPE)
    c = sample_scaling(sigma, width, first, batch - 1, start, d, lane, mask, PART, SHORT)
    total = c * tl.load(x + start + lane, mask=mask).to(DTYPE)
    if y is not None:
        c = sample_scaling(sigma, width, first, batch - 1, start, d, lane, mask, "out", SHORT)
        total += c * tl.load(y + start + lane, mask=mask).to(DTYPE)
    tl.store(out + start + lane, total.to(out.dtype.element_ty), mask=mask)
    if label is not None:  # most tiles have none to find
        index = tl.arange(0, LABELS)
        for top in range(tl.program_id(0).to(tl.int64) * LABELS, batch, tl.num_programs(0) * LABELS):
            some = index < batch - top
            tl.store(label + top + index, tl.log(tl.load(sigma + top + index, mask=some, other=1.0)) * 0.25, mask=some)


def run(
    part: str, x: Tensor, y: Tensor | None, label: Tensor | None, sigma: Tensor, width: float, out: Tensor
) -> Tensor:
    """One launch over the memory of `out`; sigma is in the inner dtype."""
    x, y = in_order_of(out, x), None if y is None else in_order_of(out, y)
    n, batch = out.numel(), len(out)
    d = n // batch
    block = 2 * BLOCK if min(out.itemsize, x.itemsize) == 2 else BLOCK
    launch(
        edm_kernel, -(-n // block), out,
        out, x, y, label, sigma.contiguous(), *bits([width], sigma.dtype), n, d, batch,
        PART=part, SHORT=d < block, BIG=n >= WORD, ALIGNED=min(n & -n, 16), BLOCK=block, DTYPE=triton_dtype(sigma.dtype),
    )  # fmt: skip
    return out


def in_order_of(out: Tensor, t: Tensor) -> Tensor:
    """The state with the strides of `out`, and with its signs in memory."""
    return t if t.stride() == out.stride() and not t.is_neg() else torch.empty_like(out, dtype=t.dtype).copy_(t)


def edm_input_triton(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`edm_input_reference` in one launch."""
    label = torch.empty_like(sigma, memory_format=torch.contiguous_format)
    return run("into", x, None, label, sigma, sigma_data, empty_like(x)), label


def edm_output_triton(x: Tensor, output: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """`edm_output_reference` in one launch."""
    return run("skip", x, output, None, sigma, sigma_data, empty_like(x))


def edm_scale_triton(x: Tensor, sigma: Tensor, sigma_data: float, part: str, dtype: torch.dtype) -> Tensor:
    """`edm_scale_reference` in one launch."""
    return run(part, x, None, None, sigma, sigma_data, empty_like(x, dtype))

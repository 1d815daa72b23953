"""Counter-based standard normals: a sample's bits depend on (seed, draw, global sample index) and on nothing else."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from halfbridge.kernels.aliasing import as_stored
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.boxmuller import box_muller
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.normal_few import FEW, fill_few
from halfbridge.kernels.operators import signed, unsigned
from halfbridge.kernels.philox import check_draw, check_first, check_seed, sample_words, words

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_ELEMENTS = (
    1 << 34
) - 2048  # of a sample: the counter has 32 bits for blocks of four elements, and a GPU counts to the end
# of a tile of 2048
CHUNK = {"cpu": 1 << 13}  # counters at once: 20 vectors of 64 KiB stay in an L2 cache, and 4 * 2^13 normals are few
# enough for torch to work in one thread (2^14 are not: with a busy second core they took three times as long)
GPU_CHUNK = 1 << 20


def normal(
    shape: Sequence[int],
    seed: int,
    draw: int = 0,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    out: Tensor | None = None,
) -> Tensor:
    """Standard normals of shape (batch, *sample): x[i] depends on (seed, draw, first + i) and the size of a sample
    only.

    Words from Philox4x32-10 (Salmon et al. 2011), normals by Box and Muller 1958; see `philox` and `boxmuller` for the
    layout. float32 and float64 have the same bits on every CPU backend, for any batch size, chunking and number of
    threads. Error against the exact normal of the same words: below 1e-6 in float32, 1e-14 in float64. float16 and
    bfloat16 are the float32 normals, rounded.

    `out`, of that shape, dtype and device, receives the result. 0 <= seed < 2^64, 0 <= draw < 2^32, first >= 0 and
    first + batch <= 2^64; a sample has at most 2^34 - 2048 elements. TypeError or ValueError otherwise.
    """
    device = torch.device(device)
    if torch.compiler.is_compiling():
        made = normal_operator(list(shape), signed(seed), draw, signed(first), dtype, device)
        return made if out is None else out.copy_(made)
    sizes = check_shape(shape)
    check_dtype(dtype)
    if out is not None:
        check_out(out, sizes, dtype, device)
    seed, draw, first = check_seed(seed), check_draw(draw), check_first(first, sizes[0])
    result = torch.empty(sizes, dtype=dtype, device=device) if out is None else out
    fill(result.unsqueeze(0), seed, (draw,), first)
    if out is not None:
        increment_version(out)
    return result


@torch.library.custom_op("halfbridge::normal", mutates_args=())
def normal_operator(
    shape: list[int], seed: int, draw: int, first: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`normal` as torch.compile keeps it whole: seed and first as signed words."""
    return normal(shape, unsigned(seed), draw, unsigned(first), dtype, device)


@normal_operator.register_fake
def _(shape: list[int], seed: int, draw: int, first: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def normal_block(
    shape: Sequence[int],
    seed: int,
    draws: Sequence[int],
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The normals of several draws, (len(draws), *shape): block[k] has the bits of normal(shape, seed, draws[k],
    first).

    One vectorised call: for states of a few elements the Python overhead of a call per draw would exceed the solver's.
    """
    device = torch.device(device)
    sizes = check_shape(shape)
    check_dtype(dtype)
    seed, first = check_seed(seed), check_first(first, sizes[0])
    indices = tuple(check_draw(draw) for draw in draws)
    result = torch.empty((len(indices), *sizes), dtype=dtype, device=device)
    fill(result, seed, indices, first)
    return result


def fill(out: Tensor, seed: int, draws: Sequence[int], first: int) -> None:
    """Write the normals of `draws` into out, (len(draws), batch, *sample), any strides; arguments already checked."""
    if out.numel() == 0:
        return
    plain = as_stored(out) and out.dtype in (torch.float32, torch.float64)
    dtype = accumulation(out.dtype)
    target = out if plain else torch.empty(out.shape, dtype=dtype, device=out.device)
    rows = target.view(out.shape[0], out.shape[1], -1)
    resolve("normal", target.device.type, target.dtype, target.numel())(rows, seed, draws, first, 0)
    if not plain:
        out.copy_(target)


def fill_reference(out: Tensor, seed: int, draws: Sequence[int], first: int, start: int) -> None:
    """Eager backend: elements start .. start + n - 1 of each flattened sample into out, (draws, batch, n), contiguous
    float32 or float64.

    start is a multiple of 4. Works on chunks that fit the cache; their rows are (draw, sample) pairs.
    """
    if out.is_cpu and out.numel() <= FEW:
        fill_few(out, seed, draws, first, start)
        return
    samples, n = out.shape[1:]
    out = out.view(-1, n)
    device, blocks = out.device, -(-n // 4)
    draw_words = torch.tensor(draws, dtype=torch.int64, device=device)
    chunk = CHUNK.get(device.type, GPU_CHUNK)
    width, height = min(blocks, chunk), max(1, chunk // blocks)
    for top in range(0, len(out), height):
        row = torch.arange(top, min(top + height, len(out)), device=device).unsqueeze(1)
        sample, draw = (row, draw_words) if len(draws) == 1 else (row % samples, draw_words[row // samples])
        low, high = sample_words(first, sample)
        for left in range(0, blocks, width):
            right = min(left + width, blocks)
            block = torch.arange(left, right, device=device) + start // 4
            w0, w1, w2, w3 = words(block.unsqueeze(0), draw, (low, high), seed)
            second = box_muller(w2, w3, out.dtype) if n > 2 else ()
            z = torch.stack((*box_muller(w0, w1, out.dtype), *second), dim=-1)
            columns = out[top : top + height, 4 * left : 4 * right]
            columns.copy_(z.view(len(row), -1)[:, : columns.shape[1]])


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of ints; refused without a batch axis, or where a sample has more elements than counters."""
    if isinstance(shape, int):
        raise TypeError(
            f"`shape` must be a sequence whose first entry is the batch, got {shape!r}; pass ({shape},) or (1, {shape})"
        )
    sizes = tuple(shape)
    if not sizes:
        raise ValueError("`shape` = () has no batch axis; pass (batch, *sample), or (1,) for a single number")
    for i, size in enumerate(sizes):
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"`shape`[{i}] = {size!r} is not a size; pass non-negative ints")
    if math.prod(sizes[1:]) > MAX_ELEMENTS:
        raise ValueError(
            f"`shape` = {sizes} has {math.prod(sizes[1:])} elements a sample and the counter ends at 2**34 - 2048; "
            "split the sample over several draws"
        )
    return sizes


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse what has no normals."""
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` = {dtype} has no normals; pass one of {', '.join(str(d) for d in DTYPES)}")


def check_out(out: Tensor, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Refuse an `out` that is not what the other arguments describe."""
    if tuple(out.shape) != sizes:
        raise ValueError(f"`out` has shape {tuple(out.shape)} but `shape` = {sizes}; pass out.shape as the shape")
    if out.requires_grad:
        raise ValueError("`out` requires gradients, which noise has none of; pass out.detach()")
    if out.dtype != dtype:
        raise ValueError(f"`out` is {out.dtype} but `dtype` = {dtype}; pass dtype=out.dtype")
    if out.device.type != device.type or (device.index is not None and out.device.index != device.index):
        raise ValueError(f"`out` is on {out.device} but `device` = {device}; pass device=out.device")

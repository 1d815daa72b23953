"""Probe vectors of Hutchinson's trace estimator: E[v v^T] = I, and v is a function of a counter, so it is never kept."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from halfbridge.kernels.aliasing import as_stored
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.normal import DTYPES, check_dtype, check_out, check_shape, fill
from halfbridge.kernels.operators import signed, unsigned
from halfbridge.kernels.philox import MASK, check_draw, check_first, check_seed, philox, sample_words

Kind = Literal["rademacher", "gaussian"]
KINDS = ("rademacher", "gaussian")
SIGNS = 128  # of a counter: four words of 32 bits
CHUNK = {"cpu": 1 << 12}  # counters at once: vectors of 32 KiB, and 2 MiB of float32 signs
GPU_CHUNK = 1 << 20


def hutchinson_probe(
    shape: Sequence[int],
    seed: int,
    draw: int = 0,
    first: int = 0,
    kind: Kind = "rademacher",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    out: Tensor | None = None,
) -> Tensor:
    """Independent entries of mean 0 and variance 1, (batch, *sample): v[i] depends on (seed, draw, first + i) and the
    size of a sample only.

    "rademacher": signs. Element e of the flattened sample with global index s is bit e % 32, least significant first, of
    word (e % 128) // 32 of Philox4x32-10 under the seed at the counter (e // 128, draw, s low word, s high word): 0 is
    +1, 1 is -1. Exact in every dtype. "gaussian": the bits of `normal` for the same arguments.

    v^T A v has mean tr A (Hutchinson 1990). With A_s the symmetric part, its variance is 2 (|A_s|_F^2 - sum_i A_ii^2) for
    signs and 2 |A_s|_F^2 for normals. `out` and the ranges of the arguments are those of `normal`; TypeError or
    ValueError otherwise.
    """
    device = torch.device(device)
    if torch.compiler.is_compiling():
        made: Tensor = probe_operator(list(shape), signed(seed), draw, signed(first), kind, dtype, device)
        return made if out is None else out.copy_(made)
    sizes = check_shape(shape)
    check_dtype(dtype)
    check_kind(kind)
    if out is not None:
        check_out(out, sizes, dtype, device)
    seed, draw, first = check_seed(seed), check_draw(draw), check_first(first, sizes[0])
    result = torch.empty(sizes, dtype=dtype, device=device) if out is None else out
    fill_probes(result.unsqueeze(0), seed, (draw,), first, kind)
    if out is not None:
        increment_version(out)
    return result


@torch.library.custom_op("halfbridge::hutchinson_probe", mutates_args=())
def probe_operator(
    shape: list[int], seed: int, draw: int, first: int, kind: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`hutchinson_probe` as torch.compile keeps it whole: seed and first as signed words."""
    return hutchinson_probe(shape, unsigned(seed), draw, unsigned(first), kind, dtype, device)  # type: ignore[arg-type]


@probe_operator.register_fake
def _(
    shape: list[int], seed: int, draw: int, first: int, kind: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def probe_block(
    shape: Sequence[int],
    seed: int,
    draws: Sequence[int],
    first: int,
    kind: Kind,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The probes of several draws, (len(draws), *shape): block[k] has the bits of hutchinson_probe(shape, seed, draws[k],
    first, kind, dtype); arguments already checked.
    """
    block = torch.empty((len(draws), *shape), dtype=dtype, device=device)
    fill_probes(block, seed, draws, first, kind)
    return block


def fill_probes(out: Tensor, seed: int, draws: Sequence[int], first: int, kind: Kind) -> None:
    """Write the probes of `draws` into out, (len(draws), batch, *sample), any strides; arguments already checked."""
    if kind == "gaussian":
        fill(out, seed, draws, first)
    elif out.numel() > 0:
        target = out if as_stored(out) else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        rows = target.view(out.shape[0], out.shape[1], -1)
        resolve("hutchinson_probe", out.device.type, out.dtype, out.numel())(rows, seed, draws, first, 0)
        if target is not out:
            out.copy_(target)


def hutchinson_probe_reference(out: Tensor, seed: int, draws: Sequence[int], first: int, start: int) -> None:
    """Signs start .. start + n - 1 of each flattened sample into out, (draws, batch, n), contiguous, any float dtype.

    start is a multiple of 128. Works on chunks of counters; their rows are (draw, sample) pairs.
    """
    samples, n = out.shape[1:]
    rows, blocks = out.view(-1, n), -(-n // SIGNS)
    write: Callable[..., None] = write_numpy if out.is_cpu else write_torch
    chunk = CHUNK.get(out.device.type, GPU_CHUNK)
    width, height = min(blocks, chunk), max(1, chunk // blocks)
    for top in range(0, len(rows), height):
        for left in range(0, blocks, width):
            part = rows[top : top + height, SIGNS * left : SIGNS * (left + width)]
            write(part, top, start // SIGNS + left, samples, seed, draws, first)


def write_numpy(out: Tensor, top: int, block: int, samples: int, seed: int, draws: Sequence[int], first: int) -> None:
    """Signs of the rows top, top + 1, ... from counter `block` of each, into out (rows, n) in CPU memory: a byte of a
    word looks up eight signs, 0.4 ns an element where shifting out its bits takes 3.
    """
    row = np.arange(top, top + len(out))[:, None]
    draw = np.asarray(draws, dtype=np.int64)[row // samples]
    counter = np.arange(block, block - (-out.shape[1] // SIGNS))[None, :]
    words = np.stack(philox(counter, draw, *sample_words(first, row % samples), seed & MASK, seed >> 32), axis=-1)
    octets = words.astype("<u4").view(np.uint8).reshape(len(out), -1)[:, : -(-out.shape[1] // 8)]
    signs = PATTERNS[out.dtype].take(octets, axis=0)
    out.copy_(torch.from_numpy(signs).view(out.dtype).view(len(out), -1)[:, : out.shape[1]])


def write_torch(out: Tensor, top: int, block: int, samples: int, seed: int, draws: Sequence[int], first: int) -> None:
    """`write_numpy` for any device."""
    row = torch.arange(top, top + len(out), device=out.device).unsqueeze(1)
    draw = torch.tensor(draws, dtype=torch.int64, device=out.device)[row // samples]
    counter = torch.arange(block, block - (-out.shape[1] // SIGNS), device=out.device).unsqueeze(0)
    words = torch.stack(philox(counter, draw, *sample_words(first, row % samples), seed & MASK, seed >> 32), dim=-1)
    octets = (words.unsqueeze(-1) >> torch.arange(0, 32, 8, device=out.device)) & 0xFF
    octets = octets.view(len(out), -1)[:, : -(-out.shape[1] // 8)].reshape(-1)
    signs = TABLE.to(out.device, out.dtype).index_select(0, octets)
    out.copy_(signs.view(len(out), -1)[:, : out.shape[1]])


def check_kind(kind: object) -> None:
    """Refuse an unknown kind of probe."""
    if kind not in KINDS:
        raise ValueError(f"`kind` = {kind!r} is no kind of probe; pass one of {', '.join(map(repr, KINDS))}")


BYTE, BIT = torch.arange(256, device="cpu").unsqueeze(1), torch.arange(8, device="cpu")
TABLE = 1 - 2 * (BYTE >> BIT & 1)  # signs of a byte, least significant bit first
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
PATTERNS = {  # as bits, since numpy has no bfloat16
    dtype: TABLE.to(dtype).view(INTEGER[dtype.itemsize]).numpy() for dtype in DTYPES
}

"""The numba backend of `normal` on the CPU: float32 and float64, bit for bit the eager reference's, sooner.

The arithmetic is compiled from the functions of `philox` and `boxmuller` that torch runs too, without fastmath, so
LLVM may neither fuse nor reorder it. Each stage is a loop of its own over a block of counters that stays in the L1
cache: these LLVM vectorises, where one loop of all stages stays scalar. `compiled` holds the stages in one precision,
with that precision's names in place of float32's.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from halfbridge.kernels import boxmuller, philox
from halfbridge.kernels.cpu import compiler
from halfbridge.kernels.cpu.compiler import inlined, rebound
from halfbridge.kernels.cpu.threads import share

BLOCK = 512  # counters a stage works on: 16 KiB of counters, 8 KiB each of words and (float32) normals
THREAD_SHARE = 1 << 15  # counters that are worth another thread: 0.2 ms of work against 0.05 ms to hand it over

I32, U32 = np.int32, np.uint32


class Precision(NamedTuple):
    """The names that differ between float32 and float64."""

    REAL: Any
    INTEGER: Any  # as wide as REAL
    ONE: Any
    MINUS_TWO: Any
    UNIT: Any
    SQRT_HALF: Any
    FRACTION: Any
    TABLE: boxmuller.Table


def precision(dtype: torch.dtype) -> Precision:
    real, integer = (np.float64, np.int64) if dtype == torch.float64 else (np.float32, np.int32)
    bits, table = boxmuller.BITS[dtype], boxmuller.TABLES[dtype]
    numbers = (tuple(map(real, c)) if isinstance(c, tuple) else real(c) for c in table)
    table = boxmuller.Table._make(numbers)
    one, minus_two, unit = real(1), real(-2), real(2.0**-33)
    return Precision(real, integer, one, minus_two, unit, integer(bits.sqrt_half), integer(bits.fraction), table)


REAL, INTEGER, ONE, MINUS_TWO, UNIT, SQRT_HALF, FRACTION, TABLE = precision(torch.float32)


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if condition:
        return a
    return b


choose = inlined(_choose)
philox_words = inlined(philox.philox)
horner = inlined(boxmuller.horner)
logarithm = inlined(boxmuller.logarithm, horner=horner)
sine, cosine = inlined(boxmuller.sine, horner=horner), inlined(boxmuller.cosine, horner=horner)


def counters(c: Any, m: Any, t: Any, blocks: Any, samples: Any, draws: Any, low: Any, high: Any, start: Any) -> None:
    """Counters t .. t + m - 1 of the run over (draw, sample, block), block fastest."""
    row, block = t // blocks, t % blocks
    d, index = row // samples, low + row % samples
    draw = draws[d]
    for i in range(m):
        c[0, i], c[1, i], c[2, i], c[3, i] = start + block, draw, index & 0xFFFFFFFF, high + (index >> 32)
        block += 1
        if block == blocks:
            block, index = 0, index + 1
            if index == low + samples:
                index, d = low, d + 1
                draw = draws[d] if d < len(draws) else draw


def words(c: Any, w: Any, m: Any, key: Any, key_high: Any) -> None:
    """`philox.philox`, the words kept as int32."""
    for j in range(m):
        w0, w1, w2, w3 = philox_words(c[0, j], c[1, j], c[2, j], c[3, j], key, key_high)
        w[0, j], w[1, j], w[2, j], w[3, j] = I32(w0), I32(w1), I32(w2), I32(w3)


def radii(w: Any, r: Any, m: Any) -> None:
    """`boxmuller.radius`, of int32 words."""
    for j in range(m):
        c = REAL(U32((w[j] ^ (w[j] >> 31)) * 2 + 1)) * UNIT
        y = REAL(choose(w[j] < 0, ONE - c, c)).view(INTEGER)
        k = INTEGER(INTEGER(y - SQRT_HALF) >> FRACTION)
        f = choose(k == 0, -c, INTEGER(y - INTEGER(k << FRACTION)).view(REAL) - ONE)
        r[j] = np.sqrt(logarithm(f, REAL(k), TABLE) * MINUS_TWO)


def turns(w: Any, r: Any, x: Any, y: Any, m: Any) -> None:
    """`boxmuller.direction`, of int32 words, times the radius."""
    for j in range(m):
        q = I32(I32(w[j] + I32(1 << 29)) >> 30)
        b = REAL(I32(I32(w[j] - I32(q << 30)) * 2 + 1)) * UNIT
        z = b * b
        s, c = sine(b, z, TABLE), cosine(z, TABLE)
        odd = (q & 1) == 1
        x[j] = r[j] * (choose(odd, s, c) * REAL(1 - ((q + 1) & 2)))
        y[j] = r[j] * (choose(odd, c, s) * REAL(1 - (q & 2)))


def interleave(z: Any, flat: Any, m: Any) -> None:
    for j in range(m):
        flat[4 * j] = z[0, j]
        flat[4 * j + 1] = z[1, j]
        flat[4 * j + 2] = z[2, j]
        flat[4 * j + 3] = z[3, j]


def pack(flat: Any, out: Any, m: Any, block: Any, n: Any) -> None:
    """Four normals a counter into out, without those beyond the end of a row of n; `block`: the first one's in its row."""
    to, left = 0, n - 4 * block
    for i in range(m):
        if left > 4:
            target = out[to : to + 4]
            for j in range(4):
                target[j] = flat[4 * i + j]
            to, left = to + 4, left - 4
        else:
            for j in range(left):
                out[to + j] = flat[4 * i + j]
            to, left = to + left, n


def workspace(size: Any) -> Any:
    """What `normals` needs for `size` counters."""
    four, one = np.empty((4, size), REAL), np.empty(size, REAL)
    return np.empty((4, size), np.int64), np.empty((4, size), np.int32), one, four, np.empty(4 * size, REAL)


def place(t: Any, n: Any) -> Any:
    """The flat element that counter t of a run over rows of n begins with."""
    blocks = (n + 3) // 4
    return t // blocks * n + 4 * (t % blocks)


def normals(
    out: Any, work: Any, t: Any, m: Any, n: Any, samples: Any, draws: Any, low: Any, high: Any, start: Any, key: Any,
    key_high: Any,
) -> None:  # fmt: skip
    """The normals of counters t .. t + m - 1 of the run over (draw, sample, block) into out[0], out[1], ..."""
    c, w, r, z, flat = work
    blocks = (n + 3) // 4
    counters(c, m, t, blocks, samples, draws, low, high, start)
    words(c, w, m, key, key_high)
    radii(w[0], r, m)
    turns(w[1], r, z[0], z[1], m)
    if n > 2:
        radii(w[2], r, m)
        turns(w[3], r, z[2], z[3], m)
    if n % 4 == 0:
        interleave(z, out, m)
    else:
        interleave(z, flat, m)
        pack(flat, out, m, t % blocks, n)


@functools.cache
def compiled(dtype: torch.dtype) -> dict[str, Any]:
    """The stages for normals of that dtype, by name, with the names of the precision."""
    functions = (counters, words, radii, turns, interleave, pack, workspace, place, normals)
    return compiler.stages(functions, precision(dtype)._asdict())


def build(dtype: torch.dtype, fingerprint: str, cache: bool) -> Any:
    def kernel(
        out: Any, n: Any, begin: Any, end: Any, samples: Any, draws: Any, low: Any, high: Any, start: Any, key: Any,
        key_high: Any,
    ) -> None:  # fmt: skip
        """Normals of the flat counters begin .. end - 1 into out, flattened (draws, samples, n)."""
        _ = fingerprint
        work = workspace(min(BLOCK, end - begin))
        for t in range(begin, end, BLOCK):
            m = min(BLOCK, end - t)
            part = out[place(t, n) : place(t + m, n)]
            normals(part, work, t, m, n, samples, draws, low, high, start, key, key_high)

    words = (numba.int64,) * 5
    signature = numba.void(numba.from_dtype(np.dtype(precision(dtype).REAL))[::1], *words[1:], numba.int64[::1], *words)
    return numba.njit(signature, nogil=True, error_model="numpy", cache=cache)(rebound(kernel, **compiled(dtype)))


def run(kernel: Any, out: Any, begin: int, end: int, draws: Sequence[int], first: int, start: int, seed: int) -> None:
    """Fill counters begin .. end - 1 of out, (draws, samples, n)."""
    key, index = philox.halves(seed), philox.halves(first)
    kernel(out.reshape(-1), out.shape[2], begin, end, out.shape[1], np.array(draws, np.int64), *index, start // 4, *key)


@functools.cache
def load(dtype: torch.dtype) -> Any:
    """The kernel for normals of that dtype."""
    sources = f"{dtype} {compiler.fingerprint(philox, boxmuller)}"
    return compiler.cached(lambda cache: build(dtype, sources, cache))


def fill_numba(out: Tensor, seed: int, draws: Sequence[int], first: int, start: int) -> None:
    """`fill_reference`, compiled, on torch.get_num_threads() threads."""
    kernel, array = load(out.dtype), out.numpy()
    total = out.shape[0] * out.shape[1] * -(-out.shape[2] // 4)
    share(lambda begin, end: run(kernel, array, begin, end, draws, first, start, seed), total, THREAD_SHARE)

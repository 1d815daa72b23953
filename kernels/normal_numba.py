"""The numba backend of `normal` on the CPU: float32 normals, bit for bit those of the eager reference, sooner.

Imported when it first pays (`dispatch.pays`), never with the package. It has float32 only: float64 runs the reference.
The arithmetic is compiled from the functions of `philox` and `boxmuller` that torch runs too, without fastmath, so
LLVM may neither fuse nor reorder it. Each stage is a loop of its own over a block of counters that stays in the L1
cache: these LLVM vectorises, where one loop of all stages stays scalar.
"""

import hashlib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from halfbridge.kernels import boxmuller, philox
from halfbridge.kernels.threads import share

if getattr(numba.config, "DISABLE_JIT", False):
    raise ImportError("NUMBA_DISABLE_JIT is set")

BLOCK = 512  # counters a stage works on: 16 KiB of counters, 8 KiB each of words and normals
THREAD_SHARE = 1 << 15  # counters that are worth another thread: 0.2 ms of work against 0.05 ms to hand it over

I32, U32, F32 = np.int32, np.uint32, np.float32
ONE, MINUS_TWO, UNIT = F32(1), F32(-2), F32(2.0**-33)
SQRT_HALF, FRACTION = I32(boxmuller.BITS[torch.float32].sqrt_half), I32(boxmuller.BITS[torch.float32].fraction)
TABLE = boxmuller.Table._make(tuple(map(F32, c)) if isinstance(c, tuple) else F32(c) for c in boxmuller.FLOAT32)


def inlined(function: Callable[..., Any], **names: Any) -> Any:
    """The function, compiled into its callers, with some of its globals replaced; a call would stop the vectoriser."""
    rebound = types.FunctionType(function.__code__, {**function.__globals__, **names})
    return numba.njit(rebound, inline="always")


def stage(function: Callable[..., Any]) -> Any:
    """A loop over one block, compiled."""
    return numba.njit(function, error_model="numpy")


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if condition:
        return a
    return b


choose = inlined(_choose)
philox_words = inlined(philox.philox)
horner = inlined(boxmuller.horner)
logarithm = inlined(boxmuller.logarithm, horner=horner)
sine, cosine = inlined(boxmuller.sine, horner=horner), inlined(boxmuller.cosine, horner=horner)


@stage
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


@stage
def words(c: Any, w: Any, m: Any, key: Any, key_high: Any) -> None:
    """`philox.philox`, the words kept as int32."""
    for j in range(m):
        w0, w1, w2, w3 = philox_words(c[0, j], c[1, j], c[2, j], c[3, j], key, key_high)
        w[0, j], w[1, j], w[2, j], w[3, j] = I32(w0), I32(w1), I32(w2), I32(w3)


@stage
def radii(w: Any, r: Any, m: Any) -> None:
    """`boxmuller.radius`, of int32 words."""
    for j in range(m):
        c = F32(U32((w[j] ^ (w[j] >> 31)) * 2 + 1)) * UNIT
        y = F32(choose(w[j] < 0, ONE - c, c)).view(np.int32)
        k = I32(I32(y - SQRT_HALF) >> FRACTION)
        f = choose(k == 0, -c, I32(y - I32(k << FRACTION)).view(np.float32) - ONE)
        r[j] = np.sqrt(logarithm(f, F32(k), TABLE) * MINUS_TWO)


@stage
def normals(w: Any, r: Any, x: Any, y: Any, m: Any) -> None:
    """`boxmuller.direction`, of int32 words, times the radius."""
    for j in range(m):
        q = I32(I32(w[j] + I32(1 << 29)) >> 30)
        b = F32(I32(I32(w[j] - I32(q << 30)) * 2 + 1)) * UNIT
        z = b * b
        s, c = sine(b, z, TABLE), cosine(z, TABLE)
        odd = (q & 1) == 1
        x[j] = r[j] * (choose(odd, s, c) * F32(1 - ((q + 1) & 2)))
        y[j] = r[j] * (choose(odd, c, s) * F32(1 - (q & 2)))


@stage
def interleave(z: Any, flat: Any, m: Any) -> None:
    for j in range(m):
        flat[4 * j] = z[0, j]
        flat[4 * j + 1] = z[1, j]
        flat[4 * j + 2] = z[2, j]
        flat[4 * j + 3] = z[3, j]


@stage
def store(flat: Any, out: Any, m: Any, t: Any, blocks: Any, n: Any) -> None:
    """The normals of counters t .. t + m - 1 into the flat out, rows of n, where a row's last counter gives less than
    four.
    """
    row, block = t // blocks, t % blocks
    to, left = row * n + 4 * block, n - 4 * block
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


def build(fingerprint: str, cache: bool) -> Any:
    """The compiled kernel. `fingerprint` is a free variable of it and so part of numba's cache key.

    By itself that key knows this file only, and would go on serving code compiled from an older `philox` or
    `boxmuller`.
    """

    def kernel(
        out: Any,
        n: Any,
        begin: Any,
        end: Any,
        samples: Any,
        draws: Any,
        low: Any,
        high: Any,
        start: Any,
        key: Any,
        key_high: Any,
    ) -> None:
        """Normals of the flat counters begin .. end - 1 into out, flattened (draws, samples, n)."""
        _ = fingerprint
        blocks = (n + 3) // 4
        size = min(BLOCK, end - begin)
        c, w = np.empty((4, size), np.int64), np.empty((4, size), np.int32)
        r, z, flat = np.empty(size, np.float32), np.empty((4, size), np.float32), np.empty(4 * size, np.float32)
        for t in range(begin, end, BLOCK):
            m = min(BLOCK, end - t)
            counters(c, m, t, blocks, samples, draws, low, high, start)
            words(c, w, m, key, key_high)
            radii(w[0], r, m)
            normals(w[1], r, z[0], z[1], m)
            if n > 2:
                radii(w[2], r, m)
                normals(w[3], r, z[2], z[3], m)
            if n % 4 == 0:
                interleave(z, out[4 * t : 4 * (t + m)], m)
            else:
                interleave(z, flat, m)
                store(flat, out, m, t, blocks, n)

    return numba.njit(kernel, nogil=True, error_model="numpy", cache=cache)


def run(kernel: Any, out: Any, begin: int, end: int, draws: Sequence[int], first: int, start: int, seed: int) -> None:
    """Fill counters begin .. end - 1 of out, (draws, samples, n)."""
    key, index = (seed & philox.MASK, seed >> 32), (first & philox.MASK, first >> 32)
    kernel(out.reshape(-1), out.shape[2], begin, end, out.shape[1], np.array(draws, np.int64), *index, start // 4, *key)


_kernel: Any = None


def load() -> Any:
    """The kernel, compiled, or read from numba's cache: beside this file, else in the user's cache folder, else
    nowhere.
    """
    global _kernel
    if _kernel is None:
        sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (philox, boxmuller))
        for cache in (True, False):
            try:
                kernel = build(hashlib.sha256(sources).hexdigest(), cache)
                run(kernel, np.empty((1, 1, 1), np.float32), 0, 1, (0,), 0, 0, 0)
                break
            except (
                RuntimeError,
                OSError,
            ):  # numba found no folder to cache in, or one that cannot be written after all
                if not cache:
                    raise
        _kernel = kernel
    return _kernel


def fill_numba(out: Tensor, seed: int, draws: Sequence[int], first: int, start: int) -> None:
    """`fill_reference`, compiled, on torch.get_num_threads() threads."""
    kernel, array = load(), out.numpy()
    total = out.shape[0] * out.shape[1] * -(-out.shape[2] // 4)
    share(lambda begin, end: run(kernel, array, begin, end, draws, first, start, seed), total, THREAD_SHARE)

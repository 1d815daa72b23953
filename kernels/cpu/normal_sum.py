"""The numba backend of `normal_sum`: the normals of a block are made and added while they lie in the L1 cache."""

import functools
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from halfbridge.kernels import boxmuller, philox
from halfbridge.kernels.cpu import compiler, normal
from halfbridge.kernels.cpu.compiler import rebound
from halfbridge.kernels.cpu.normal import REAL, THREAD_SHARE, compiled, normals, place, workspace
from halfbridge.kernels.cpu.threads import share

COUNTERS = 256  # of a block: 8 KiB of sums, beside what `normals` works on


def build(dtype: torch.dtype, fingerprint: str, cache: bool) -> Any:
    def kernel(
        out: Any, n: Any, begin: Any, end: Any, samples: Any, draws: Any, coefficients: Any, low: Any, high: Any, key: Any,
        key_high: Any,
    ) -> None:  # fmt: skip
        """Adds the sums of the flat counters begin .. end - 1 to out, flattened (samples, n)."""
        _ = fingerprint
        work, made = workspace(COUNTERS), np.empty(4 * COUNTERS, REAL)
        for t in range(begin, end, COUNTERS):
            m = min(COUNTERS, end - t)
            part = out[place(t, n) : place(t + m, n)]
            z = made[: len(part)]
            for d in range(len(draws)):
                normals(z, work, t, m, n, samples, draws[d : d + 1], low, high, 0, key, key_high)
                c = coefficients[d]
                for i in range(len(part)):
                    part[i] += c * np.float64(z[i])

    words = (numba.int64,) * 4
    signature = numba.void(numba.float64[::1], *words, numba.int64[::1], numba.float64[::1], *words)
    return numba.njit(signature, nogil=True, error_model="numpy", cache=cache)(rebound(kernel, **compiled(dtype)))


def run(
    kernel: Any, out: Any, begin: int, end: int, draws: Sequence[int], coefficients: Sequence[float], first: int, seed: int
) -> None:  # fmt: skip
    key, index = philox.halves(seed), philox.halves(first)
    terms = np.array(draws, np.int64), np.array(coefficients, np.float64)
    kernel(out.reshape(-1), out.shape[1], begin, end, out.shape[0], *terms, *index, *key)


@functools.cache
def load(dtype: torch.dtype) -> Any:
    """The kernel for normals of that dtype."""
    sources = f"{dtype} {compiler.fingerprint(philox, boxmuller, normal)}"
    return compiler.cached(lambda cache: build(dtype, sources, cache))


def normal_sum_numba(
    out: Tensor, seed: int, draws: Sequence[int], coefficients: Sequence[float], first: int, dtype: torch.dtype
) -> None:
    """`normal_sum_reference`, compiled, on torch.get_num_threads() threads."""
    kernel, array = load(dtype), out.numpy()
    total = out.shape[0] * -(-out.shape[1] // 4)
    share(
        lambda begin, end: run(kernel, array, begin, end, draws, coefficients, first, seed),
        total,
        max(1, THREAD_SHARE // len(draws)),
    )

"""The numba backend of `combine` on the CPU: the eager reference's bits in one pass over memory.

The reference's chain of multiply-adds runs block by block, up to three terms at a time, on a block of the output that
stays in the L1 cache, and the normals of a block are made beside it. LLVM may neither fuse nor reorder the arithmetic;
each multiply-add is fused, by an instruction of its own, exactly where torch's is, so loop tails, alignment and threads
leave no trace. Tensors come as addresses: numba takes 20 ns to read an integer, while a numpy array costs 0.5 us to make.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numba
import numba.extending
import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from halfbridge.kernels import boxmuller, philox
from halfbridge.kernels.aliasing import disentangled, in_one_order
from halfbridge.kernels.arguments import recorded
from halfbridge.kernels.combine import add_noise, combine_reference, out_first
from halfbridge.kernels.cpu import compiler, normal
from halfbridge.kernels.cpu.compiler import inlined, rebound
from halfbridge.kernels.cpu.normal import normals, place, precision, workspace
from halfbridge.kernels.cpu.threads import share
from halfbridge.kernels.noise import Noise

VECTORS = 6  # of one call
BLOCK = 1024  # elements, 8 KiB of float64: the output's block and those of two vectors stay in the L1 cache
COUNTERS = 256  # of a block of normals
THREAD_SHARE = 1 << 21  # bytes moved that are worth another thread: 50 to 100 us of work
NOISY_SHARE = 1 << 13  # counters that are: 100 us
SMALL = 1 << 14  # elements that are not worth asking for the number of threads

REAL = np.float32  # in the loops: the float type of the run
contiguous, address = Tensor.is_contiguous, Tensor.data_ptr
SPARE: tuple[tuple[float, ...], ...] = tuple((0.0,) * (VECTORS - count) for count in range(VECTORS + 1))
EMPTY: tuple[tuple[int, ...], ...] = tuple((0,) * (VECTORS - count) for count in range(VECTORS + 1))


def roundings(dtype: torch.dtype) -> set[int]:
    """How often torch rounds a + alpha b on this machine: once (a fused multiply-add) or twice; both numbers where that
    depends on the place in the tensor.
    """
    small = 2.0**-12 if dtype == torch.float32 else 2.0**-27
    b = torch.full((131,), 1 + small, dtype=dtype)  # b b = 1 + 2 small + small^2, whose last term a rounding drops
    return {
        1 if total == small * small else 2
        for n in (1, 3, 7, 131)
        for total in torch.full((n,), -1 - 2 * small, dtype=dtype).add_(b[:n], alpha=1 + small).tolist()
    }


ROUNDINGS = {dtype: roundings(dtype) for dtype in (torch.float32, torch.float64)}
REPRODUCIBLE = all(len(seen) == 1 for seen in ROUNDINGS.values())  # if not, no other loop has the reference's bits


def _pointer(context: Any, address: Any, real: Any) -> Any:
    def lower(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], target.get_value_type(signature.return_type))

    made: Any = numba.types.CPointer
    return made(real.dtype)(address, real), lower


def _fused(context: Any, a: Any, b: Any, c: Any) -> Any:
    return a(a, a, a), lambda target, builder, signature, values: builder.fma(*values)


def _unfused(a: Any, b: Any, c: Any) -> Any:
    return a * b + c


carray: Any = getattr(numba, "carray")  # noqa: B009
pointer: Any = numba.extending.intrinsic(_pointer)
multiply_add: Any = numba.extending.intrinsic(_fused)  # a b + c, rounded once


def at(address: Any, begin: Any, end: Any) -> Any:
    """Elements begin .. end - 1 of the tensor at that address, as an array."""
    return carray(pointer(address, REAL), end)[begin:end]


def one(out: Any, v: Any, a: Any) -> None:
    for i in range(len(out)):
        out[i] = a * v[i]


def two(out: Any, v: Any, w: Any, a: Any, b: Any) -> None:
    for i in range(len(out)):
        out[i] = multiply_add(b, w[i], a * v[i])


def three(out: Any, v: Any, w: Any, x: Any, a: Any, b: Any, c: Any) -> None:
    for i in range(len(out)):
        out[i] = multiply_add(c, x[i], multiply_add(b, w[i], a * v[i]))


def chain(out: Any, vectors: Any, c: Any, count: Any, begin: Any, end: Any) -> None:
    """Elements begin .. end - 1 of sum_j c_j v_j, `count` terms in their order; `out` may be the first vector.

    Where it is, the loop gets one array twice: from two arrays LLVM would take both for overlapping, and stay scalar.
    """
    o = at(out, begin, end)
    if count == 0:
        o[:] = REAL(0)
        return
    v = at(vectors[0], begin, end)
    if count == 1 and vectors[0] == out:
        one(o, o, c[0])
    elif count == 1:
        one(o, v, c[0])
    elif count % 2 == 0 and vectors[0] == out:
        two(o, o, at(vectors[1], begin, end), c[0], c[1])
    elif count % 2 == 0:
        two(o, v, at(vectors[1], begin, end), c[0], c[1])
    elif vectors[0] == out:
        three(o, o, at(vectors[1], begin, end), at(vectors[2], begin, end), c[0], c[1], c[2])
    else:
        three(o, v, at(vectors[1], begin, end), at(vectors[2], begin, end), c[0], c[1], c[2])
    for j in range(2 + count % 2, count, 2):
        three(o, o, at(vectors[j], begin, end), at(vectors[j + 1], begin, end), REAL(1), c[j], c[j + 1])


@functools.cache
def compiled(dtype: torch.dtype) -> dict[str, Any]:
    """The loops for tensors of that dtype, by name, beside the stages of its normals."""
    names = {**normal.compiled(dtype), "REAL": precision(dtype).REAL}
    names["multiply_add"] = multiply_add if ROUNDINGS[dtype] == {1} else inlined(_unfused)
    for function in (at, one, two, three):
        names[function.__name__] = inlined(function, **names)
    return compiler.stages([chain], names)


def build(dtype: torch.dtype, fingerprint: str, cache: bool) -> Any:
    def kernel(
        begin: Any, end: Any, count: Any, out: Any, v0: Any, v1: Any, v2: Any, v3: Any, v4: Any, v5: Any, c0: Any,
        c1: Any, c2: Any, c3: Any, c4: Any, c5: Any,
    ) -> None:  # fmt: skip
        """Elements begin .. end - 1 of sum_j c_j v_j into out."""
        _ = fingerprint
        vectors, c = (v0, v1, v2, v3, v4, v5), (REAL(c0), REAL(c1), REAL(c2), REAL(c3), REAL(c4), REAL(c5))
        for left in range(begin, end, BLOCK):
            chain(out, vectors, c, count, left, min(left + BLOCK, end))

    return signed(kernel, 0, dtype, cache)


def build_noisy(dtype: torch.dtype, fingerprint: str, cache: bool) -> Any:
    def noisy(
        begin: Any, end: Any, count: Any, out: Any, v0: Any, v1: Any, v2: Any, v3: Any, v4: Any, v5: Any, c0: Any,
        c1: Any, c2: Any, c3: Any, c4: Any, c5: Any, n: Any, batch: Any, scale: Any, draw: Any, low: Any, high: Any,
        key: Any, key_high: Any,
    ) -> None:  # fmt: skip
        """The elements of counters begin .. end - 1, rows of n, of sum_j c_j v_j + scale N into out."""
        _ = fingerprint
        vectors, c = (v0, v1, v2, v3, v4, v5), (REAL(c0), REAL(c1), REAL(c2), REAL(c3), REAL(c4), REAL(c5))
        size = min(COUNTERS, end - begin)
        work, z, draws = workspace(size), np.empty(4 * size, REAL), np.full(1, draw)
        for t in range(begin, end, COUNTERS):
            m = min(COUNTERS, end - t)
            left, right = place(t, n), place(t + m, n)
            normals(z, work, t, m, n, batch, draws, low, high, 0, key, key_high)
            chain(out, vectors, c, count, left, right)
            o = at(out, left, right)
            two(o, o, z, REAL(1), REAL(scale))

    return signed(noisy, 8, dtype, cache)


def signed(kernel: Any, more: int, dtype: torch.dtype, cache: bool) -> Any:
    """The kernel, compiled for begin .. v5, c0 .. c5 and `more` arguments of noise: whatever comes is converted to these
    types.
    """
    noise = (numba.int64,) * 2 + (numba.float64,) + (numba.int64,) * 5
    signature = numba.void(*(numba.int64,) * (4 + VECTORS), *(numba.float64,) * VECTORS, *noise[:more])
    return numba.njit(signature, nogil=True, error_model="numpy", cache=cache)(rebound(kernel, **compiled(dtype)))


def sources(dtype: torch.dtype) -> str:
    return f"{dtype} {ROUNDINGS[dtype]} {compiler.fingerprint(philox, boxmuller, normal)}"


@functools.cache
def load(dtype: torch.dtype) -> Any:
    """The kernel for tensors of that dtype."""
    return compiler.direct(compiler.cached(lambda cache: build(dtype, sources(dtype), cache)))


@functools.cache
def load_noisy(dtype: torch.dtype) -> Any:
    """The kernel with noise."""
    return compiler.direct(compiler.cached(lambda cache: build_noisy(dtype, sources(dtype), cache)))


def combine_numba(
    vectors: Sequence[Tensor], coefficients: Sequence[float], noise: Noise | None = None, out: Tensor | None = None
) -> Tensor:
    """`combine_reference`, compiled, on torch.get_num_threads() threads; `out` may overlap the vectors in any way.

    The reference itself runs where gradients or a transform of torch.func are recorded, and for tensors whose elements
    do not lie in one order in memory without gaps.
    """
    like = vectors[0] if out is None else out
    n = like.numel()
    by_rows = like.is_contiguous() and all(map(contiguous, vectors))
    if (
        not REPRODUCIBLE
        or n < 2  # one element is contiguous even where it is lazily negated, as the imag of a conj is
        or forward_ad._current_level >= 0
        or (out is None and recorded(vectors, None))
        or not (by_rows or in_one_order([like, *vectors]))
    ):
        return by_reference(vectors, coefficients, noise, out)
    try:
        addresses = [*map(address, vectors)]
    except RuntimeError:  # under a transform of torch.func
        addresses = [0]
    if 0 in addresses:  # no memory of its own
        return by_reference(vectors, coefficients, noise, out)
    if out is None:
        out = torch.empty_like(like)
        o = out.data_ptr()
    else:
        o, size = out.data_ptr(), out.nbytes
        for a in addresses:
            if a != o and -size < a - o < size:
                return out.copy_(combine_numba(vectors, coefficients, noise, torch.empty_like(out)))
        if o in addresses[1:]:
            vectors, coefficients = out_first(vectors, coefficients, out)
            addresses = [*map(address, vectors)]
    count = len(addresses)
    if n <= SMALL and count <= VECTORS and noise is None:
        load(out.dtype)(0, n, count, o, *addresses, *EMPTY[count], *coefficients, *SPARE[count])
        return out
    while len(addresses) > VECTORS:
        add_up(out, addresses[:VECTORS], coefficients[:VECTORS])
        addresses, coefficients = [o, *addresses[VECTORS:]], (1.0, *coefficients[VECTORS:])
    add_up(out, addresses, coefficients, noise if by_rows else None)
    if noise is not None and not by_rows:
        add_noise(out, noise)
    return out


def by_reference(
    vectors: Sequence[Tensor], coefficients: Sequence[float], noise: Noise | None, out: Tensor | None
) -> Tensor:
    if out is None:
        return combine_reference(vectors, coefficients, noise, None)
    vectors, target = disentangled(vectors, out)
    total = combine_reference(vectors, coefficients, noise, target)
    return total if target is out else out.copy_(total)


def add_up(out: Tensor, addresses: list[int], coefficients: Sequence[float], noise: Noise | None = None) -> None:
    """sum_j c_j v_j (+ scale N) into `out`; with noise it is contiguous, (batch, *sample)."""
    run = load(out.dtype) if noise is None else load_noisy(out.dtype)
    count, n = len(addresses), out.numel()
    rest = (count, out.data_ptr(), *addresses, *EMPTY[count], *coefficients, *SPARE[count])
    if noise is None:
        share(lambda begin, end: run(begin, end, *rest), n, THREAD_SHARE // (out.itemsize * (count + 1)))
        return
    row, first, key = n // len(out), philox.halves(noise.first), philox.halves(noise.seed)
    last = (row, len(out), noise.scale, noise.draw, *first, *key)
    share(lambda begin, end: run(begin, end, *rest, *last), len(out) * -(-row // 4), NOISY_SHARE)

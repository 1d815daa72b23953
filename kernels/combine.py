"""The update that all solvers share: out = sum_j c_j v_j + c N(0, I)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _increment_version  # half the time of torch.autograd.graph's, which calls it
from torch.compiler import is_compiling

from halfbridge.kernels.aliasing import apart, check_writable, disentangled, same_elements
from halfbridge.kernels.arguments import (
    check_coefficients,
    check_device_noise,
    check_noise,
    check_table,
    check_tensors,
    on_host,
    plain,
    recorded,
)
from halfbridge.kernels.combine_operator import combine_traced
from halfbridge.kernels.dispatch import resolve, select
from halfbridge.kernels.noise import DeviceNoise, Noise
from halfbridge.kernels.normal import fill
from halfbridge.kernels.operators import untransformed

ZERO, SMALL = torch.full((), -0.0, dtype=torch.float32, device="cpu"), 4096  # -0 + x = x, the sign of a zero too
HALF = (torch.float16, torch.bfloat16)
NOISE_CHUNK = {"cpu": 1 << 20}  # normals held at once; a full-size temporary would cost a second pass over main memory
GPU_NOISE_CHUNK = 1 << 26
NORMAL_COST = 40  # multiply-adds that take the reference as long as a normal


def combine(
    vectors: Sequence[Tensor],
    coefficients: Sequence[float] | Tensor,
    *,
    noise: Noise | DeviceNoise | tuple[float, int, int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """sum_j coefficients[j] * vectors[j] (+ noise.scale * N), in one primitive.

    vectors: tensors (batch, *sample) of one shape, floating dtype and device, any strides, any number of them.
    coefficients: as many finite real numbers, in float64 until they meet the vectors. noise: the counter-based normal
    of (seed, draw) for the samples first, first + 1, ...; with scale 0 it is not generated. float16 and bfloat16 are
    summed in float32 and rounded once.

    out: receives the result; it may be one of the vectors (anywhere, even twice) or overlap them partly (then a copy
    is made). With no vectors, `out` says the shape. Without `out`, differentiable in the vectors to any order. A
    sample's bits depend neither on the batch around it nor on the number of threads. TypeError or ValueError for bad
    arguments.

    For a CUDA graph that replays with other numbers, coefficients may be a 1-D floating tensor and noise a DeviceNoise.
    Triton's kernels read these where they lie, unchecked; other backends fetch the numbers, which on a GPU waits for
    it, and check them as above. Under torch.compile the call is one operator of the graph.
    """
    if is_compiling():
        return combine_traced(vectors, coefficients, noise, out)
    if noise is None and plain(vectors, coefficients, out):
        like = vectors[0]
        backend, run = select("combine", "cpu", like.dtype, like.numel())
        if out is None or backend == "numba" or apart(vectors, out):  # numba's loop looks at the addresses itself
            quick: Tensor = run(vectors, coefficients, None, out)
            if out is not None and backend != "reference":
                _increment_version((out,))
            return quick
    vectors, like = check_tensors(vectors, out)
    cost = like.numel() * (1 if noise is None else NORMAL_COST)
    backend, run = select("combine", like.device.type, like.dtype, cost)
    factors = read_coefficients(coefficients, len(vectors), like, backend)
    known = None if noise is None else read_noise(noise, like, backend)
    target = out
    if out is not None:
        if recorded(vectors, out):
            raise ValueError(
                "`out` cannot be given while gradients are recorded; leave it out or work under torch.no_grad()"
            )
        check_writable(out)
        vectors, target = disentangled(vectors, out)
    total: Tensor = run(vectors, factors, known, target)
    if out is None:
        return total
    _increment_version((out,))  # compiled code has written there, which autograd must hear of
    return total if target is out else out.copy_(total)


def read_coefficients(
    coefficients: Sequence[float] | Tensor, count: int, like: Tensor, backend: str
) -> tuple[float, ...] | Tensor:
    """The coefficients as that backend takes them."""
    if not isinstance(coefficients, Tensor):
        return check_coefficients(coefficients, count, like)
    check_table(coefficients, count, like)
    if backend == "triton" and coefficients.device == like.device:
        return coefficients
    return check_coefficients(coefficients.tolist(), count, like)


def read_noise(noise: Any, like: Tensor, backend: str) -> Noise | DeviceNoise | None:
    """The noise as that backend takes it."""
    if not isinstance(noise, DeviceNoise):
        return check_noise(noise, like)
    check_device_noise(noise, like)
    return noise if backend == "triton" else check_noise(on_host(noise), like)


def combine_reference(
    vectors: Sequence[Tensor], coefficients: Sequence[float], noise: Noise | None = None, out: Tensor | None = None
) -> Tensor:
    """`combine` without its checks, in eager torch: in-place multiply-adds, no temporary of the state's size.

    Callers promise that `out` is one of the vectors, the same object, or shares no memory with them, and that no
    gradient is recorded where `out` is given. float16 and bfloat16 take temporaries.
    """
    like = vectors[0] if out is None else out
    if like.dtype in HALF:
        total = combine_half(vectors, coefficients, noise, like)
        return total.to(like.dtype) if out is None else out.copy_(total)
    if out is None:
        if torch.is_grad_enabled():
            return combine_recorded(vectors, coefficients, noise)
        out = scaled(vectors[0], coefficients[0], None)
    elif not vectors:
        out.zero_()
    else:
        for v in vectors[1:]:
            if v is out:
                return combine_reference(*out_first(vectors, coefficients, out), noise, out)
        scaled(vectors[0], coefficients[0], out)
    add = out.add_
    for j in range(1, len(vectors)):
        add(vectors[j], alpha=coefficients[j])
    if noise is not None:
        add_noise(out, noise)
    return out


def scaled(v: Tensor, c: float, out: Tensor | None) -> Tensor:
    """c v. For a few float32 numbers, adding to zero takes half the time of multiplying, which first makes a tensor of
    the Python number and rounds it (1.2 against 2.1 us at 2 elements; for 1e5 elements it takes longer instead).
    """
    if v.numel() <= SMALL and v.dtype is torch.float32 and v.is_cpu:
        return torch.add(ZERO, v, alpha=c, out=out)
    return torch.mul(v, c, out=out)


def out_first(
    vectors: Sequence[Tensor], coefficients: Sequence[float], out: Tensor
) -> tuple[list[Tensor], list[float]]:
    """The same sum where `out` stands at a later place among the vectors, perhaps at several: it comes once and first,
    to be scaled before it is overwritten.
    """
    pairs = list(zip(vectors, coefficients, strict=True))
    own = math.fsum(c for v, c in pairs if same_elements(v, out))
    others = [(v, c) for v, c in pairs if not same_elements(v, out)]
    return [out, *(v for v, _ in others)], [own, *(c for _, c in others)]


def combine_half(vectors: Sequence[Tensor], coefficients: Sequence[float], noise: Noise | None, like: Tensor) -> Tensor:
    """The sum in float32 of float16 or bfloat16 vectors (like: says shape and device)."""
    wide = [v.float() for v in vectors] or [torch.zeros_like(like, dtype=torch.float32)]
    return combine_reference(wide, coefficients or (0.0,), noise, None)


def combine_recorded(vectors: Sequence[Tensor], coefficients: Sequence[float], noise: Noise | None) -> Tensor:
    """Out of place, so that autograd, forward mode, vmap and their nestings see plain additions."""
    total = vectors[0] * coefficients[0]
    for v, c in zip(vectors[1:], coefficients[1:], strict=True):
        total = total.add(v, alpha=c)
    if noise is not None and total.requires_grad:
        with untransformed():
            z = torch.empty(total.shape, dtype=total.dtype, device=total.device)
            fill(z.unsqueeze(0), noise.seed, (noise.draw,), noise.first)
        total = total.add(z, alpha=noise.scale)
    elif noise is not None:
        add_noise(total, noise)
    return total


def add_noise(total: Tensor, noise: Noise) -> None:
    """total += noise.scale * N, chunk by chunk; total is float32 or float64. A normal's bits do not depend on its
    chunk.
    """
    if total.numel() == 0:
        return
    make = resolve("normal", total.device.type, total.dtype, total.numel())
    batch, chunk = total.shape[0], NOISE_CHUNK.get(total.device.type, GPU_NOISE_CHUNK)
    flat = total.view(batch, -1) if total.is_contiguous() else total
    n = total.numel() // batch
    width = min(n, chunk) if total.is_contiguous() else n
    height = max(1, chunk // width)
    with untransformed():
        buffer = torch.empty(min(height, batch) * width, dtype=total.dtype, device=total.device)
    for top in range(0, batch, height):
        rows = flat[top : top + height]
        for left in range(0, n, width):
            part = rows[:, left : left + width] if width < n else rows
            z = buffer[: part.numel()].view(1, len(part), -1)
            with untransformed():
                make(z, noise.seed, (noise.draw,), noise.first + top, left)
            part.add_(z.view(part.shape), alpha=noise.scale)

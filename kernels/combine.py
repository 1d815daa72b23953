"""The update that all solvers share: out = sum_j c_j v_j + c N(0, I)."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from halfbridge.kernels.aliasing import check_writable, may_overlap, same_elements
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.noise import Noise
from halfbridge.kernels.normal import fill
from halfbridge.kernels.philox import check_draw, check_first, check_seed

ZERO, SMALL = torch.zeros((), dtype=torch.float32, device="cpu"), 4096
HALF = (torch.float16, torch.bfloat16)
NOISE_CHUNK = {"cpu": 1 << 20}  # normals held at once; a full-size temporary would cost a second pass over main memory
GPU_NOISE_CHUNK = 1 << 26
LARGEST = torch.finfo(torch.float32).max


def combine(
    vectors: Sequence[Tensor],
    coefficients: Sequence[float],
    *,
    noise: Noise | tuple[float, int, int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """sum_j coefficients[j] * vectors[j] (+ noise.scale * N), in one primitive.

    vectors: tensors (batch, *sample) of one shape, floating dtype and device, any strides. coefficients: as many
    finite real numbers, in float64 until they meet the vectors. noise: the counter-based normal of (seed, draw) for
    the samples first, first + 1, ...; with scale 0 it is not generated. float16 and bfloat16 are summed in float32 and
    rounded once.

    out: receives the result; it may be one of the vectors (anywhere, even twice) or overlap them partly (then a copy
    is made). With no vectors, `out` says the shape. Without `out`, differentiable in the vectors to any order. A
    sample's bits depend neither on the batch around it nor on the number of threads. TypeError or ValueError for bad
    arguments.
    """
    vectors, like, factors = check_vectors(vectors, coefficients, out)
    checked = None if noise is None else check_noise(noise, like)
    target = out
    if out is not None:
        if torch.is_grad_enabled() and (out.requires_grad or any(v.requires_grad for v in vectors)):
            raise ValueError(
                "`out` cannot be given while gradients are recorded; leave it out or work under torch.no_grad()"
            )
        check_writable(out)
        vectors = tuple(out if same_elements(out, v) else v for v in vectors)
        if any(v is not out and may_overlap(out, v) for v in vectors):
            target = torch.empty_like(out)
    result: Tensor = resolve("combine", like.device.type, like.dtype, like.numel())(vectors, factors, checked, target)
    return result if out is None or target is out else out.copy_(result)


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
                return combine_into_one(vectors, coefficients, noise, out)
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


def combine_into_one(
    vectors: Sequence[Tensor], coefficients: Sequence[float], noise: Noise | None, out: Tensor
) -> Tensor:
    """`out` stands at a later place among the vectors, perhaps at several: it is scaled first, before it is
    overwritten.
    """
    pairs = list(zip(vectors, coefficients, strict=True))
    own = math.fsum(c for v, c in pairs if v is out)
    others = [(v, c) for v, c in pairs if v is not out]
    return combine_reference([out, *(v for v, _ in others)], [own, *(c for _, c in others)], noise, out)


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
    buffer = torch.empty(min(height, batch) * width, dtype=total.dtype, device=total.device)
    for top in range(0, batch, height):
        rows = flat[top : top + height]
        for left in range(0, n, width):
            part = rows[:, left : left + width] if width < n else rows
            z = buffer[: part.numel()].view(1, len(part), -1)
            make(z, noise.seed, (noise.draw,), noise.first + top, left)
            part.add_(z.view(part.shape), alpha=noise.scale)


def check_vectors(
    vectors: Sequence[Tensor] | Tensor, coefficients: Sequence[float], out: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, tuple[float, ...]]:
    """(vectors, a tensor that says shape, dtype and device, coefficients as floats), or an error naming the odd one
    out.
    """
    if isinstance(vectors, Tensor):
        raise TypeError("`vectors` is one tensor; pass a list of tensors, [x] for a single one")
    vectors, coefficients = tuple(vectors), tuple(coefficients)
    if len(vectors) != len(coefficients):
        raise ValueError(
            f"{len(vectors)} `vectors` but {len(coefficients)} `coefficients`; pass one coefficient for each vector"
        )
    if not vectors and out is None:
        raise ValueError("`vectors` is empty and so says no shape; pass `out`, or call `normal` for plain noise")
    like, first = (vectors[0], "`vectors`[0]") if vectors else (out, "`out`")
    check_like(first, like, like, first)
    assert like is not None
    for j, v in enumerate(vectors):
        if not alike(v, like):
            check_like(f"`vectors`[{j}]", v, like, first)
    if out is not None and not alike(out, like):
        check_like("`out`", out, like, first)
    factors = tuple(map(float, coefficients)) if set(map(type, coefficients)) <= {float, int} else ()
    limit = math.inf if like.dtype == torch.float64 else LARGEST
    if len(factors) < len(coefficients) or not all(-limit <= c <= limit and math.isfinite(c) for c in factors):
        factors = tuple(check_real(f"coefficients[{j}]", c, like.dtype) for j, c in enumerate(coefficients))
    return vectors, like, factors


def alike(v: Any, like: Tensor) -> bool:
    return isinstance(v, Tensor) and v.shape == like.shape and v.dtype is like.dtype and v.device == like.device


def check_like(name: str, tensor: Any, like: Any, other: str) -> None:
    """Refuse what is not a floating tensor of the shape, dtype and device of `like`, called `other` in the message."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; pass a torch tensor")
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} has dtype {tensor.dtype}; pass a floating dtype, {name.strip('`')}.float() for example"
        )
    for what in ("shape", "dtype", "device"):
        got, want = getattr(tensor, what), getattr(like, what)
        if got != want:
            got, want = (tuple(got), tuple(want)) if what == "shape" else (got, want)
            raise ValueError(f"{name} has {what} {got} but {other} has {want}; they must agree, convert one of them")


def check_real(name: str, value: Any, dtype: torch.dtype) -> float:
    """A finite real number, within the range of the dtype in which the sum is formed, as a float."""
    if not isinstance(value, Real):
        raise TypeError(f"`{name}` is a {type(value).__name__}; pass a Python float (`.item()` of a 0-dim tensor)")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"`{name}` = {number} is not finite; check the times and the step that it was computed from")
    if abs(number) > LARGEST and dtype != torch.float64:
        raise ValueError(
            f"`{name}` = {number} overflows float32, in which {dtype} states are summed; use float64 states"
        )
    return number


def check_noise(noise: Noise | tuple[float, int, int, int], like: Tensor) -> Noise | None:
    """The noise with its fields checked against the state; None where its scale is 0."""
    if not isinstance(noise, tuple) or not 3 <= len(noise) <= 4:
        raise TypeError(f"`noise` = {noise!r} is not (scale, seed, draw, first); pass halfbridge.kernels.Noise(...)")
    if like.dim() == 0:
        raise ValueError("`noise` needs a batch axis but the vectors have shape (); pass vectors of shape (1,)")
    scale, seed, draw, first = Noise(*noise)
    known = Noise(
        check_real("noise.scale", scale, like.dtype), check_seed(seed), check_draw(draw), check_first(first, len(like))
    )
    return known if known.scale != 0.0 else None

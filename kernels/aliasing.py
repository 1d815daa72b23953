"""Do two tensors share memory? Asked before an output is written while inputs are still to be read."""

from collections.abc import Sequence

import torch
from torch import Tensor


def extent(t: Tensor) -> tuple[int, int]:
    """First byte and the byte after the last that the elements of `t` span; equal where `t` is empty."""
    start = t.data_ptr()
    if t.numel() == 0 or t.is_contiguous():
        return start, start + t.nbytes
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return start, start + (last + 1) * t.element_size()


def same_elements(a: Tensor, b: Tensor) -> bool:
    """The same elements in the same places: reading b[i] before writing a[i] is then safe element by element. The stride
    of an axis of one element says nothing.
    """
    return a is b or (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.dtype == b.dtype
        and all(s == t or size == 1 for s, t, size in zip(a.stride(), b.stride(), a.shape, strict=True))
    )


def may_overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the spans meet. Interleaved views (x[::2], x[1::2]) count as overlapping: safe, and costs a copy."""
    (a_start, a_end), (b_start, b_end) = extent(a), extent(b)
    return a.device == b.device and a_start < b_end and b_start < a_end


def apart(vectors: Sequence[Tensor], out: Tensor) -> bool:
    """Whether all are contiguous, and each is `out` itself or shares no memory with it. A loop: half the time of all()."""
    start, size, ordered = out.data_ptr(), out.nbytes, out.is_contiguous()
    for v in vectors:
        if v is not out:
            ordered = ordered and v.is_contiguous() and not -size < v.data_ptr() - start < size
    return ordered


def disentangled(vectors: Sequence[Tensor], out: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The vectors, where one with the elements of `out` is that object, and where to write: `out`, or a tensor like it
    if some other vector shares memory with it.
    """
    vectors = tuple(out if same_elements(out, v) else v for v in vectors)
    overlapping = any(v is not out and may_overlap(out, v) for v in vectors)
    return vectors, torch.empty_like(out) if overlapping else out


def dense(t: Tensor) -> bool:
    """Whether the span of `t` in memory holds each of its elements once, with its sign, and nothing else."""
    if t.is_neg():
        return False
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def as_stored(t: Tensor) -> bool:
    """Whether memory holds the elements of `t` in their order and with their signs: a tensor of one element is contiguous even
    where it is lazily negated, as the imag of a conj is.
    """
    return t.is_contiguous() and not t.is_neg()


def stored(t: Tensor) -> Tensor:
    """The tensor, or a copy that is `as_stored`."""
    return t.contiguous().resolve_neg()


def in_one_order(tensors: Sequence[Tensor]) -> bool:
    """Whether all have their elements in the same order in memory, without holes: contiguous ones, or those of
    channels_last, say.
    """
    like = tensors[0]
    return all(as_stored(t) for t in tensors) or (all(t.stride() == like.stride() for t in tensors) and dense(like))


def check_writable(out: Tensor) -> None:
    """Refuse an output in which two indices name one element (an expanded tensor)."""
    if out.is_contiguous():
        return
    for axis, (size, stride) in enumerate(zip(out.shape, out.stride(), strict=True)):
        if size > 1 and stride == 0:
            raise ValueError(
                f"`out` of shape {tuple(out.shape)} repeats one element along axis {axis}; pass out.contiguous()"
            )

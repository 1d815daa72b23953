"""`mixture_field` in eager torch: what the kernel means, in float64, in memory that n and k do not decide."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.distances import cut, distances, nearest, points, unit

LOGITS = 1 << 17  # entries of one (samples, components) block: 1 MB of float64, which a core's cache holds
TABLE = 1 << 21  # entries of one (components, d) block
WIDTH = 1 << 13  # components of a block at most, so that it holds several samples
GPU = 16  # times larger blocks there, where work must outlast its launches
LOWEST = -1e300  # stands for -inf where a difference is taken
Pair = tuple[Tensor | None, Tensor | None]


class Components(NamedTuple):
    """The arguments of `mixture_field` that say what the components are; checked."""

    means: Tensor
    log_weights: Tensor
    variances: Tensor | float
    gain: Tensor | float
    alpha: float
    offset: float
    reach: float | None


class Block(NamedTuple):
    """What the components seen so far leave of some samples: with c = top - least / (2 S), S the widest variance, e^c total
    and e^c mixed are their sums of densities and of densities times vectors. (rows, ...)

    top is a constant to autograd: it cancels between numerator and denominator.
    """

    least: Tensor
    top: Tensor
    total: Tensor
    mixed: Tensor | None

    def joined(self, other: "Block", widest: Tensor | float) -> "Block":
        least = torch.minimum(self.least, other.least)
        one = self.top - (self.least - least) * (0.5 / widest)
        two = other.top - (other.least - least) * (0.5 / widest)
        top = torch.maximum(one, two)
        one, two = (one - top).exp(), (two - top).exp()
        mixed = None if self.mixed is None or other.mixed is None else self.mixed * one + other.mixed * two
        return Block(least, top, self.total * one + other.total * two, mixed)


class Samples(NamedTuple):
    """Some rows of x in float64, which of them, and their heads and tails."""

    rows: slice
    y: Tensor
    head: Tensor
    tail: Tensor


Chunk = tuple[Tensor, Tensor | float, Tensor | float]  # of components: means, variances, gains, in float64
Mix = Callable[[Tensor, Chunk, Samples], Tensor]  # (weights (rows, components), components, samples) -> (rows, columns)


def stream(x: Tensor, components: Components, mix: Mix | None) -> Iterator[tuple[Samples, Block, Tensor | float]]:
    """(samples, what the components leave of them, the widest variance), for blocks of samples.

    With D the least squared distance, D / s_k is split as D / S + D (1 / s_k - 1 / S), S the widest: in the far tails no D
    is left to drown the posterior of components that agree.
    """
    means, log_weights, s, gain, alpha, _, reach = components
    k, d = means.shape
    step = unit(abs(alpha) * (longest(means) if reach is None else reach))
    bias, widest, narrower = log_weights.double(), s, None
    if isinstance(s, Tensor):
        s = s.double()
        widest = s.max()
        narrower = (widest - s) / (s * widest)
        bias = torch.add(bias, s.log(), alpha=-0.5 * d)
    larger = 1 if x.device.type == "cpu" else GPU
    width = min(k, WIDTH, max(1, larger * TABLE // d))
    height = max(1, larger * LOGITS // width)
    parts = [slice(i, i + height) for i in range(0, max(1, len(x)), height)]
    samples = [Samples(rows, y, *cut(y, step)) for rows, y in zip(parts, torch.split(x.double(), height), strict=True)]
    found: list[Block] = []
    for m, v, g, b, half, more in slices(width, means, s, gain, bias, -0.5 / s, narrower):
        m, g = m.double(), g.double() if isinstance(g, Tensor) else g
        p = points(alpha * m, step)
        blocks = []
        for some in samples:
            _, y, head, tail = some
            above, least = distances(head, tail, p)
            if more is not None:
                exponents = torch.addcmul(b, above, half)
                exponents = torch.addcmul(exponents, nearest(least, y, head, tail), more, value=-0.5)
            else:
                exponents = torch.add(b, above, alpha=half)
            top = exponents.detach().amax(1, keepdim=True).clamp_(min=LOWEST)
            weight = (exponents - top).exp()
            mixed = mix(weight, (m, v, g), some) if mix is not None else None
            blocks.append(Block(least, top, weight.sum(1, keepdim=True), mixed))
        found = [one.joined(other, widest) for one, other in zip(found, blocks, strict=True)] if found else blocks
    for some, block in zip(samples, found, strict=True):
        yield some, block, widest


def mixture_field_reference(x: Tensor, components: Components, field: bool, density: bool) -> Pair:
    """(field, log density), None for what is not asked for: matrix products over blocks of samples and components."""
    means, _, s, gain, alpha, offset, _ = components

    def mix(weight: Tensor, chunk: Chunk, _: Samples) -> Tensor:
        m, g = chunk[0], chunk[2]
        return weight @ (torch.cat([(offset - alpha * g[:, None]) * m, g[:, None]], 1) if isinstance(g, Tensor) else m)

    fields, densities = [], []
    for (_, y, head, tail), (least, top, total, mixed), widest in stream(x, components, mix if field else None):
        if mixed is not None:
            mean = mixed / total
            if isinstance(gain, Tensor):
                fields.append(mean[:, -1:] * y + mean[:, :-1])
            else:
                fields.append(torch.add(gain * y, mean, alpha=offset - alpha * gain))
        if density:
            densities.append((top + total.log() - nearest(least, y, head, tail) * (0.5 / widest))[:, 0])
    level = -0.5 * means.shape[1] * math.log(2 * math.pi * (1.0 if isinstance(s, Tensor) else s))
    return (
        torch.cat(fields).to(x.dtype) if field else None,
        (torch.cat(densities) + level).to(accumulation(x.dtype)) if density else None,
    )


def mixture_pullback(x: Tensor, components: Components, v: Tensor | None, u: Tensor | None) -> Tensor:
    """The derivative in x of sum(v * field) + sum(u * log density), in closed form and as little memory; (n, d), v's in x.

    With f_k = gain_k (x - alpha m_k) + offset m_k and p_k = f_k . v: mean(gain_k) v - mean((p_k - mean(p) + u) (x - alpha m_k)
    / s_k), means over the posterior. Itself differentiable.
    """
    alpha, offset, d = components.alpha, components.offset, x.shape[1]

    def mix(weight: Tensor, chunk: Chunk, some: Samples) -> Tensor:
        m, s, g = chunk
        one = torch.ones_like(m[:, :1])
        inverse, g = (
            one / (s[:, None] if isinstance(s, Tensor) else s),
            one * (g[:, None] if isinstance(g, Tensor) else g),
        )
        table = torch.cat([m * inverse, inverse, one, g], 1)
        plain = weight @ table
        if v is None:
            return torch.cat([plain, torch.zeros_like(plain)], 1)
        w = v[some.rows].double()
        projections = torch.addmm((w * some.y).sum(1, keepdim=True) * g.mT, w, ((offset - alpha * g) * m).mT)
        return torch.cat([plain, (weight * projections) @ table], 1)

    made = []
    for some, block, _ in stream(x, components, mix):
        assert block.mixed is not None
        plain, projected = torch.split(block.mixed / block.total, d + 3, 1)
        less = projected[:, d + 1 : d + 2] - (0.0 if u is None else u[some.rows, None].double())
        push = projected - less * plain
        made.append(alpha * push[:, :d] - push[:, d : d + 1] * some.y)
        if v is not None:
            made[-1] = made[-1] + plain[:, d + 2 :] * v[some.rows].double()
    return torch.cat(made).to(x.dtype)


def slices(width: int, means: Tensor, *tables: Any) -> Iterator[tuple[Any, ...]]:
    """The tables, `width` components at a time; a number, or None, is the same for all."""
    if width == len(means):
        yield means, *tables
        return
    for i in range(0, len(means), width):
        yield tuple(t[i : i + width] if isinstance(t, Tensor) else t for t in (means, *tables))


def longest(means: Tensor) -> float:
    """max_k |m_k|."""
    return float(torch.linalg.vector_norm(means, dim=1, dtype=torch.float64).max())

"""v . w for a Hutchinson probe v that is made again from its counter instead of being read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from halfbridge.kernels.arguments import accumulation, check_like
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.hutchinson_probe import Kind, check_kind, probe_block, probe_operator
from halfbridge.kernels.normal import check_dtype, check_shape
from halfbridge.kernels.operators import signed, unsigned
from halfbridge.kernels.philox import check_draw, check_first, check_seed
from halfbridge.kernels.sums import sum_by_halves

PART = 1 << 17  # elements of a sample that are summed on their own: 1 MiB of float64 products stays in cache


def hutchinson_dot(jv: Tensor, seed: int, draw: int = 0, first: int = 0, kind: Kind = "rademacher") -> Tensor:
    """sum_i v_i jv_i of each sample, (batch,), with v = hutchinson_probe(jv.shape, seed, draw, first, kind, jv.dtype).

    jv: (batch, *sample), any strides; where it is J v or J^T v, the result estimates tr J. It is float64 for float64 jv
    and float32 for the other types, within 2 ulp of that type relative to sum_i |v_i jv_i|; on a GPU, where
    that sum leaves the range of the type, the result may be inf or NaN although it would fit. The order of the additions depends
    on the size of a sample only, so a sample's bits depend neither on the batch around it nor on the number of threads.

    v is never stored whole: nothing of the size of jv is allocated, but for a copy where jv has no flat view.
    Differentiable in jv to any order: d/d(jv)_i = v_i, made again as well. Under torch.compile the call is one operator of
    the graph. Ranges as in `normal`; TypeError or ValueError otherwise.
    """
    if torch.compiler.is_compiling():
        made: Tensor = dot_operator(jv, signed(seed), draw, signed(first), kind)
        return made
    check_like("`jv`", jv, jv, "`jv`")
    check_dtype(jv.dtype)
    sizes = check_shape(tuple(jv.shape))
    check_kind(kind)
    seed, draw, first = check_seed(seed), check_draw(draw), check_first(first, sizes[0])
    return dot_block(jv.unsqueeze(0), seed, (draw,), first, kind)[0]


@torch.library.custom_op("halfbridge::hutchinson_dot", mutates_args=())
def dot_operator(jv: Tensor, seed: int, draw: int, first: int, kind: str) -> Tensor:
    with torch.no_grad():  # torch has recorded the operator itself
        return hutchinson_dot(jv, unsigned(seed), draw, unsigned(first), kind)  # type: ignore[arg-type]


@dot_operator.register_fake
def _(jv: Tensor, seed: int, draw: int, first: int, kind: str) -> Tensor:
    return jv.new_empty(jv.shape[:1], dtype=accumulation(jv.dtype))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    jv, *ctx.probe = inputs
    ctx.like = (jv.shape, jv.dtype, jv.device)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    shape, dtype, device = ctx.like
    v = probe_operator(shape, *ctx.probe, dtype, device)
    return (gradient.reshape(-1, *(1,) * (len(shape) - 1)) * v).to(dtype), None, None, None, None


dot_operator.register_autograd(_backward, setup_context=_save)


def dot_block(jv: Tensor, seed: int, draws: Sequence[int], first: int, kind: Kind) -> Tensor:
    """The dots of several draws, (len(draws), batch), with jv of shape (len(draws), batch, *sample); arguments already
    checked.
    """
    result: Tensor = Dot.apply(jv, seed, tuple(draws), first, kind)  # type: ignore[no-untyped-call]
    return result


class Dot(torch.autograd.Function):
    """jv -> its dots with the probes of `draws`: linear, with `Spread` as its adjoint."""

    @staticmethod
    def forward(jv: Tensor, seed: int, draws: tuple[int, ...], first: int, kind: Kind) -> Tensor:
        if jv.numel() == 0:
            return jv.new_zeros(jv.shape[:2], dtype=accumulation(jv.dtype))
        run = resolve("hutchinson_dot", jv.device.type, jv.dtype, jv.numel())
        result: Tensor = run(jv.reshape(*jv.shape[:2], -1), seed, draws, first, kind)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        jv, *ctx.probe = inputs
        ctx.like = (tuple(jv.shape[1:]), jv.dtype, jv.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return Spread.apply(gradient, *ctx.probe, *ctx.like), None, None, None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return dot_block(tangent, *ctx.probe)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], jv: Tensor, *probe: Any) -> tuple[Tensor, int]:
        return torch.stack([dot_block(part, *probe) for part in jv.unbind(in_dims[0])]), 0


class Spread(torch.autograd.Function):
    """g -> g v, (len(draws), *shape), for one number g for each probe and sample: the adjoint of `Dot`."""

    @staticmethod
    def forward(
        g: Tensor,
        seed: int,
        draws: tuple[int, ...],
        first: int,
        kind: Kind,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        v = probe_block(shape, seed, draws, first, kind, dtype, device)
        return (g.reshape(*g.shape, *(1,) * (v.dim() - 2)) * v).to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.probe, ctx.shape, ctx.dtype, ctx.device = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return dot_block(gradient, *ctx.probe), *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        result: Tensor = Spread.apply(tangent, *ctx.probe, ctx.shape, ctx.dtype, ctx.device)  # type: ignore[no-untyped-call]
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], g: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return torch.stack([Spread.apply(part, *rest) for part in g.unbind(in_dims[0])]), 0  # type: ignore[no-untyped-call]


def hutchinson_dot_reference(jv: Tensor, seed: int, draws: Sequence[int], first: int, kind: Kind) -> Tensor:
    """`dot_block` in eager torch for a jv of shape (draws, batch, n) that is not empty: products in float64, summed by
    parts of a sample.

    Products of float32 numbers are exact and their sum is rounded once; sums of float64 products are compensated.
    """
    batch, n = jv.shape[1:]
    compensated = jv.dtype == torch.float64
    probes, height, width = len(draws) if jv.numel() <= PART else 1, max(1, PART // n), min(n, PART)
    result = []
    for k in range(0, len(draws), probes):
        rows = []
        for top in range(0, batch, height):
            part = jv[k : k + probes, top : top + height]
            sums = []
            for left in range(0, n, width):
                w = part[:, :, left : left + width]
                terms = products(w, seed, draws[k : k + probes], first + top, left, kind)
                sums.append(sum_by_halves(terms.view(-1, w.shape[2]), compensated))
            rows.append(add_up(sums, compensated).view(part.shape[:2]))
        result.append(torch.cat(rows, dim=1))
    return torch.cat(result).to(accumulation(jv.dtype))


def products(w: Tensor, seed: int, draws: Sequence[int], first: int, start: int, kind: Kind) -> Tensor:
    """v_i w_i in float64 for entries start, start + 1, ... of the probes that meet `w` (draws, batch, m), which have its
    dtype; a sign makes no rounding."""
    dtype = w.dtype if kind == "rademacher" else accumulation(w.dtype)
    v = torch.empty(w.shape, dtype=dtype, device=w.device)
    make = resolve("hutchinson_probe" if kind == "rademacher" else "normal", w.device.type, dtype, v.numel())
    make(v, seed, draws, first, start)
    return (v * w).double() if kind == "rademacher" else v.to(w.dtype).double() * w


def add_up(sums: list[tuple[Tensor, Tensor]], compensated: bool) -> Tensor:
    """The sum of the parts' sums, (rows,), with what they lost; what a sum that is not finite lost is not a number."""
    total, lost = sum_by_halves(torch.stack([total for total, _ in sums], dim=1), compensated)
    for _, more in sums:
        lost = lost + more
    return torch.where(total.isfinite(), total + lost, total)

"""`combine` as an operator of torch: torch.compile keeps it whole, and it has a gradient whatever backend runs it."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from halfbridge.kernels.arguments import (
    check_batch,
    check_device_noise,
    check_table,
    check_tensors,
    recorded,
)
from halfbridge.kernels.noise import DeviceNoise, Noise
from halfbridge.kernels.operators import signed, unsigned
from halfbridge.kernels.traced import as_operands


def combine_traced(vectors: Any, coefficients: Any, noise: Any, out: Tensor | None) -> Tensor:
    """`combine` while torch.compile traces: one operator, and the checks that need no value; the operator makes the others.
    Numbers that change from call to call lie in host memory: one graph serves all of them.
    """
    vectors, like = check_tensors(vectors, out)
    if out is not None and recorded(vectors, out):
        raise ValueError(
            "`out` cannot be given while gradients are recorded; leave it out or work under torch.no_grad()"
        )
    if isinstance(coefficients, Tensor):
        check_table(coefficients, len(vectors), like)
    if isinstance(noise, DeviceNoise):
        check_device_noise(noise, like)
    elif noise is not None:
        check_batch(like)
        noise = Noise(*noise)
    if not vectors:
        vectors, coefficients = (torch.zeros_like(like),), (0.0,)
    total = combine_whole(vectors, coefficients, noise)
    return total if out is None else out.copy_(total)


def combine_whole(
    vectors: Sequence[Tensor], coefficients: Sequence[float] | Tensor, noise: Noise | DeviceNoise | None
) -> Tensor:
    """`combine` of checked arguments as one operator."""
    numbers, table = (None, coefficients) if isinstance(coefficients, Tensor) else as_operands(list(coefficients))
    if isinstance(noise, DeviceNoise):
        words: tuple[Any, ...] = (1.0, 0, 0, 0, noise.scale, noise.counter)
    else:
        scale, seed, draw, first = (0.0, 0, 0, 0) if noise is None else noise
        constant, scale_at = as_operands([scale])
        words = (*(constant or [0.0]), signed(seed), draw, signed(first), scale_at, None)
    total: Tensor = combine_operator(list(vectors), numbers, table, *words)
    return total


@torch.library.custom_op("halfbridge::combine", mutates_args=())
def combine_operator(
    vectors: list[Tensor], coefficients: list[float] | None, table: Tensor | None, scale: float, seed: int, draw: int, first: int,
    scale_at: Tensor | None, counter: Tensor | None,
) -> Tensor:  # fmt: skip
    """sum_j c_j v_j + scale N. The numbers are `coefficients`, scale, seed, draw, first (none is drawn where scale is 0), or
    lie in memory: `table`, scale_at and counter. Without `counter`, scale_at is in host memory.
    """
    noise: Noise | DeviceNoise | None = None
    if scale_at is not None and counter is not None:
        noise = DeviceNoise(scale_at, counter)
    elif scale_at is not None or scale != 0.0:
        noise = Noise(scale if scale_at is None else scale_at.item(), unsigned(seed), draw, unsigned(first))
    from halfbridge.kernels.combine import combine

    factors = cast(Sequence[float] | Tensor, coefficients if table is None else table)
    with torch.no_grad():  # torch has recorded the operator itself
        return combine(vectors, factors, noise=noise)


@combine_operator.register_fake
def _(vectors: list[Tensor], *_: Any) -> Tensor:
    return torch.empty(vectors[0].shape, dtype=vectors[0].dtype, device=vectors[0].device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.coefficients, table, *_ = inputs
    ctx.save_for_backward(table)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (table,) = ctx.saved_tensors
    factors = table.split(1) if ctx.coefficients is None else [[c] for c in ctx.coefficients]
    pairs = zip(factors, ctx.needs_input_grad[0], strict=True)
    return [combine_whole([grad], c, None) if wanted else None for c, wanted in pairs], *[None] * 8


combine_operator.register_autograd(_backward, setup_context=_save)

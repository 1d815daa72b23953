"""How large the error of an embedded pair is against the tolerances: what an adaptive solver compares with 1."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from halfbridge.kernels.arguments import accumulation, check_like, check_real, check_state, check_vectors
from halfbridge.kernels.combine import combine_reference
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.operators import transforming
from halfbridge.kernels.sums import norms
from halfbridge.kernels.traced import as_operands, numbers_of

Norm = Literal["sample", "batch"]
VECTORS = 6
CHUNK = 1 << 17  # elements measured at once: 1 MiB of float64 squares stays in cache


def error_norm(
    vectors: Sequence[Tensor],
    coefficients: Sequence[float],
    x: Tensor,
    y: Tensor,
    *,
    rtol: float,
    atol: float,
    norm: Norm = "sample",
) -> Tensor:
    """sqrt(mean_i r_i^2) with r_i = e_i / (atol + rtol max(|x_i|, |y_i|)) and e = sum_j coefficients[j] vectors[j].

    Hairer, Norsett, Wanner 1993, Solving ODEs I, II.4: x and y are the states before and after a step, e the difference
    of its two embedded results, which is never stored. vectors: 1 to 6 tensors (batch, *sample), of one shape, floating
    dtype and device with x and y. rtol, atol: finite, not negative, not both 0.

    norm "sample": (batch,), the mean over each sample, whose bits do not depend on the batch around it. "batch": one
    number, (), the mean over all elements. float64 for float64 states, float32 otherwise; in it e is formed too, so that an
    error below its rounding, some eps sum_j |coefficients[j] vectors[j]|, is noise. Ratios of any size have their squares
    scaled: nothing overflows before the result (for float64 up to ratios of 1e150).

    Where a tolerance is 0 (atol = 0 and x_i = y_i = 0) an error of 0 counts as 0 and any other as inf; an x_i or y_i that
    is not finite makes the result NaN: no comparison accepts such a step. Without elements the result is 0. It carries no
    gradient: the size of a step is chosen, not differentiated. TypeError or ValueError for bad arguments.
    """
    given: object = vectors
    if isinstance(given, (list, tuple)) and not given:
        raise ValueError(f"`vectors` is empty; pass 1 to {VECTORS} tensors whose sum is the error")
    vectors, _, factors = check_vectors(vectors, coefficients, None)
    if len(vectors) > VECTORS:
        raise ValueError(
            f"{len(vectors)} `vectors`, at most {VECTORS} are taken; pass combine(vectors, ...) as a single one"
        )
    for name, tensor in (("`x`", x), ("`y`", y)):
        check_like(name, tensor, vectors[0], "`vectors`[0]")
    check_state("`x`", x)
    rtol, atol = check_tolerance("rtol", rtol, x.dtype), check_tolerance("atol", atol, x.dtype)
    if rtol == 0 and atol == 0:
        raise ValueError("`rtol` and `atol` are both 0, which no error meets; pass a positive one")
    if norm not in ("sample", "batch"):
        raise ValueError(f'`norm` = {norm!r}; pass "sample" or "batch"')
    with torch.no_grad():
        if torch.compiler.is_compiling():
            operands = as_operands([*factors, rtol, atol])
            result: Tensor = error_norm_operator(list(vectors), *operands, x, y, norm)
            return result
        run = error_norm_reference if transforming() else resolve("error_norm", x.device.type, x.dtype, x.numel())
        measured: Tensor = run(vectors, factors, x, y, rtol, atol, norm)
        return measured


def check_tolerance(name: str, value: float, dtype: torch.dtype) -> float:
    """A number that is finite, not negative and not lost in the dtype in which errors are measured."""
    number = check_real(name, value, dtype)
    if number < 0:
        raise ValueError(f"`{name}` = {number} is negative; pass 0 or a positive tolerance")
    least = torch.finfo(accumulation(dtype)).tiny
    if 0 < number < least:
        raise ValueError(
            f"`{name}` = {number} is below {least:.2g}, the least normal number of that state; pass 0 or more"
        )
    return number


def error_norm_reference(
    vectors: Sequence[Tensor], coefficients: Sequence[float], x: Tensor, y: Tensor, rtol: float, atol: float, norm: Norm
) -> Tensor:
    """`error_norm` without its checks, in eager torch: ratios in the result's dtype, their squares summed in float64, by
    parts that depend on a sample's size alone."""
    batch = len(x) if norm == "sample" else 1
    inner = accumulation(x.dtype)
    d = x.numel() // max(batch, 1)
    if d == 0:
        return torch.zeros((batch,) if norm == "sample" else (), dtype=inner, device=x.device)
    states = [t.reshape(batch, d) for t in (x, y, *vectors)]
    sizes = []
    for top in range(0, batch, height := max(1, CHUNK // d)):
        rows = [t[top : top + height] for t in states] if height < batch else states
        columns = [[t[:, left : left + CHUNK] for t in rows] for left in range(0, d, CHUNK)] if d > CHUNK else [rows]
        parts = [norms(ratios(part, coefficients, rtol, atol)) for part in columns]
        sizes.append(parts[0] if len(parts) == 1 else norms(torch.stack(parts, dim=1)))
    result = (sizes[0] if len(sizes) == 1 else torch.cat(sizes)).div_(d**0.5).to(inner)
    return result if norm == "sample" else result[0]


def ratios(states: Sequence[Tensor], coefficients: Sequence[float], rtol: float, atol: float) -> Tensor:
    """e / (atol + rtol max(|x|, |y|)) of the states x, y, *vectors; 0 where e is 0, NaN where x or y is not finite."""
    inner = accumulation(states[0].dtype)
    x, y, *vectors = states if states[0].dtype == inner else [t.to(inner) for t in states]
    e = combine_reference(vectors, coefficients)
    r = e / torch.maximum(x.abs(), y.abs()).mul_(rtol).add_(atol)
    return torch.where(e == 0, e, r).add_(x, alpha=0.0).add_(y, alpha=0.0)


@torch.library.custom_op("halfbridge::error_norm", mutates_args=())
def error_norm_operator(
    vectors: list[Tensor], numbers: list[float] | None, table: Tensor | None, x: Tensor, y: Tensor, norm: str
) -> Tensor:
    """numbers: the coefficients, rtol and atol; or they are in `table`."""
    *coefficients, rtol, atol = numbers_of(numbers, table)
    run = resolve("error_norm", x.device.type, x.dtype, x.numel())
    result: Tensor = run(vectors, coefficients, x, y, rtol, atol, norm)
    return result


@error_norm_operator.register_fake
def _(
    vectors: list[Tensor], numbers: list[float] | None, table: Tensor | None, x: Tensor, y: Tensor, norm: str
) -> Tensor:
    return x.new_empty((x.shape[0],) if norm == "sample" else (), dtype=accumulation(x.dtype))

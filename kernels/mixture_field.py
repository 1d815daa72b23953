"""The field of a Gaussian mixture with isotropic components, and its log density, streamed over the components."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from halfbridge.kernels.arguments import LARGEST, accumulation, check_real
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.mixture_reference import (
    Components,
    Pair,
    mixture_field_reference,
    mixture_pullback,
)
from halfbridge.kernels.traced import as_operands, numbers_of


@overload
def mixture_field(
    x: Tensor, means: Tensor, log_weights: Tensor, variances: Tensor | float, gain: Tensor | float, *,
    alpha: float = ..., offset: float = ..., reach: float | None = ..., log_density: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def mixture_field(
    x: Tensor, means: Tensor, log_weights: Tensor, variances: Tensor | float, gain: Tensor | float, *,
    alpha: float = ..., offset: float = ..., reach: float | None = ..., log_density: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def mixture_field(
    x: Tensor,
    means: Tensor,
    log_weights: Tensor,
    variances: Tensor | float,
    gain: Tensor | float,
    *,
    alpha: float = 1.0,
    offset: float = 0.0,
    reach: float | None = None,
    log_density: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """sum_k r_k (gain_k (x - alpha m_k) + offset m_k), r_k proportional to w_k N(x; alpha m_k, s_k I).

    The posterior of the components given x, by log-sum-exp, and its mean of what is affine in each of them: every view of
    a diffused mixture (noise, score, data, velocity) has this form.

    x: (n, d), floating. means: (k, d), any strides, of a dtype that float32 (float64 for float64 x) holds exactly.
    log_weights: log w, (k,); -inf is a component without weight (if all are: NaN). variances: s > 0, and gain: a number for
    all components, or (k,). Numbers and vectors are best given in float64. Result: (n, d) in x's dtype; with `log_density`
    also log sum_k w_k N(x; alpha m_k, s_k I) in nats, (n,), in float64 for float64 x and in float32 otherwise.

    reach: max_k |m_k| (Euclidean); without it one more pass over the means finds it.

    Rounding: the eager reference computes in float64 for any x. The GPU's kernel computes in float32, u = 2^-24 (float64 for
    float64 x, u = 2^-53), and forms each x - alpha m_k with one rounding. With D_k = |x - alpha m_k| and R = alpha reach,
    an exponent log w_k - D_k^2 / (2 s_k) - d/2 log s_k is off by at most 6 u D_k min(D_k, 5 R) / s_k and 3 u of its other
    terms; where the s_k differ, by 12 u D_k^2 / s_k more. So within the noise of a component, D_k^2 = d s_k, weights are off
    by some 6 u d however small the noise. Sums over k: (600 + k / 4096) u of the sum of their terms' sizes.

    Neither an (n, k, d) tensor nor an (n, k) one is made, but blocks of samples and components. A sample's bits do not
    depend on its batch where the kernel runs. Differentiable in x, to any order: by the reference, which torch.func and
    forward mode use too, or backwards from the kernel in closed form, in float64. TypeError or ValueError for bad arguments.
    """
    field, density = mixture(x, means, log_weights, variances, gain, alpha, offset, reach, True, log_density)
    assert field is not None
    return field if density is None else (field, density)


def mixture_log_density(
    x: Tensor,
    means: Tensor,
    log_weights: Tensor,
    variances: Tensor | float,
    *,
    alpha: float = 1.0,
    reach: float | None = None,
) -> Tensor:
    """log sum_k w_k N(x; alpha m_k, s_k I) in nats, (n,), without the field; everything else as in `mixture_field`."""
    density = mixture(x, means, log_weights, variances, 0.0, alpha, 0.0, reach, False, True)[1]
    assert density is not None
    return density


def mixture(
    x: Tensor, means: Tensor, log_weights: Tensor, variances: Tensor | float, gain: Tensor | float,
    alpha: float, offset: float, reach: float | None, field: bool, density: bool,
) -> Pair:  # fmt: skip
    """(field, log density), None for what is not asked for: checks the arguments and picks what runs."""
    check_tables(x, means, log_weights)
    components = Components(
        means,
        log_weights,
        check_coefficient("variances", variances, x, means),
        check_coefficient("gain", gain, x, means),
        check_real("alpha", alpha, x.dtype),
        check_real("offset", offset, x.dtype),
        None if reach is None else check_real("reach", reach, x.dtype),
    )
    if reach is not None and reach < 0:
        raise ValueError(f"`reach` = {reach} is negative; pass the largest |m_k|, or leave it out")
    if not isinstance(variances, Tensor) and not 1 / LARGEST < variances < LARGEST and x.dtype != torch.float64:
        raise ValueError(
            f"`variances` = {variances} or its inverse overflows float32, in which {x.dtype} x is computed; use x.double()"
        )
    if torch.compiler.is_compiling():
        return recorded(x, components, field, density)
    run = resolve("mixture_field", x.device.type, x.dtype, x.numel() * len(means))
    if run is mixture_field_reference or transformed(x):
        return mixture_field_reference(x, components, field, density)
    if x.requires_grad and torch.is_grad_enabled():
        return recorded(x, components, field, density)
    found: Pair = run(x, components, field, density)
    return found


def transformed(x: Tensor) -> bool:
    """Whether torch.func or forward mode differentiates or batches: only torch's own functions tell them how."""
    if torch._C._are_functorch_transforms_active():
        return True
    tangent: Any = torch.autograd.forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return tangent is not None


def check_tables(x: Tensor, means: Tensor, log_weights: Tensor) -> None:
    """x (n, d), means (k, d), log_weights (k,): floating, on one device, the means no wider than x is computed."""
    for name, tensor, ndim, shape in (("x", x, 2, "(n, d)"), ("means", means, 2, "(k, d)")):
        check_floating(name, tensor)
        if tensor.ndim != ndim or tensor.shape[1] == 0:
            raise ValueError(
                f"`{name}` has shape {tuple(tensor.shape)}; pass {shape} with d >= 1, x.flatten(1) for example"
            )
    if means.shape[1] != x.shape[1] or means.shape[0] == 0:
        raise ValueError(
            f"`means` has shape {tuple(means.shape)}, but `x` has shape {tuple(x.shape)}; pass (k, {x.shape[1]}) with k >= 1"
        )
    check_vector("log_weights", log_weights, means)
    inner = accumulation(x.dtype)
    if torch.promote_types(means.dtype, inner) != inner:
        raise ValueError(
            f"`means` has dtype {means.dtype}, which {inner} does not hold, in which {x.dtype} `x` is computed; "
            "pass x.double(), or means.float() if their rounding does not matter"
        )
    for name, tensor in (("means", means), ("log_weights", log_weights)):
        if tensor.device != x.device:
            raise ValueError(f"`{name}` is on {tensor.device}, but `x` is on {x.device}; move it there")
        check_no_gradient(name, tensor)


def check_coefficient(name: str, value: Any, x: Tensor, means: Tensor) -> Tensor | float:
    """A finite number, positive if it is a variance, or a vector of k, whose entries are not looked at."""
    if not isinstance(value, Tensor):
        number = check_real(name, value, x.dtype)
        if name == "variances" and not number > 0:
            raise ValueError(f"`variances` = {number} is not positive; pass alpha^2 v + sigma^2 with sigma > 0")
        return number
    check_vector(name, value, means)
    if value.device != x.device:
        raise ValueError(f"`{name}` is on {value.device}, but `x` is on {x.device}; move it there, or pass a number")
    check_no_gradient(name, value)
    return value


def check_vector(name: str, value: Any, means: Tensor) -> None:
    check_floating(name, value)
    if value.shape != means.shape[:1]:
        raise ValueError(
            f"`{name}` has shape {tuple(value.shape)}; pass ({len(means)},), an entry for each of the `means`"
        )


def check_floating(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` is a {type(value).__name__}; pass a torch tensor")
    if not value.is_floating_point():
        raise ValueError(f"`{name}` has dtype {value.dtype}; pass a floating dtype, {name}.float() for example")


def check_no_gradient(name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"`{name}` requires a gradient, but only x gets one; pass {name}.detach()")


def recorded(x: Tensor, components: Components, field: bool, density: bool) -> Pair:
    """By the operator, which compilers keep whole and autograd knows."""
    means, log_weights, s, gain, alpha, offset, reach = components
    varied, gains = s if isinstance(s, Tensor) else None, gain if isinstance(gain, Tensor) else None
    variance, one_gain = 1.0 if isinstance(s, Tensor) else s, 0.0 if isinstance(gain, Tensor) else gain
    numbers = [variance, one_gain, alpha, offset, *(() if reach is None else (reach,))]
    made = iter(operator(x, means, log_weights, varied, gains, *as_operands(numbers), field, density))
    return next(made) if field else None, next(made) if density else None


@torch.library.custom_op("halfbridge::mixture_field", mutates_args=())
def operator(
    x: Tensor, means: Tensor, log_weights: Tensor, varied: Tensor | None, gains: Tensor | None,
    numbers: list[float] | None, table: Tensor | None, field: bool, density: bool,
) -> list[Tensor]:  # fmt: skip
    """What `mixture` is asked for. numbers: variance, gain, alpha, offset, and the reach if given; or they are in `table`.
    `varied` and `gains`, where given, stand instead of the first two.
    """
    components = joined(means, log_weights, varied, gains, numbers, table)
    run = resolve("mixture_field", x.device.type, x.dtype, x.numel() * len(means))
    return [made for made in run(x, components, field, density) if made is not None]


def joined(
    means: Tensor,
    log_weights: Tensor,
    varied: Tensor | None,
    gains: Tensor | None,
    numbers: list[float] | None,
    table: Tensor | None,
) -> Components:
    """The components that the operator's arguments name."""
    variance, gain, alpha, offset, *reach = numbers_of(numbers, table)
    s, g = variance if varied is None else varied, gain if gains is None else gains
    return Components(means, log_weights, s, g, alpha, offset, reach[0] if reach else None)


@operator.register_fake
def _(
    x: Tensor, means: Tensor, log_weights: Tensor, varied: Tensor | None, gains: Tensor | None,
    numbers: list[float] | None, table: Tensor | None, field: bool, density: bool,
) -> list[Tensor]:  # fmt: skip
    made = [x.new_empty(x.shape)] if field else []
    return [*made, x.new_empty(x.shape[:1], dtype=accumulation(x.dtype))] if density else made


def keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.numbers, table, ctx.field, ctx.density = inputs
    ctx.save_for_backward(*tensors, table)


def backward(ctx: Any, gradients: list[Tensor]) -> Any:
    x, *tables, table = ctx.saved_tensors
    return pullback(x, gradients, *tables, ctx.numbers, table, ctx.field, ctx.density), *(None,) * 8


operator.register_autograd(backward, setup_context=keep)


@torch.library.custom_op("halfbridge::mixture_field_pullback", mutates_args=())
def pullback(
    x: Tensor, gradients: list[Tensor], means: Tensor, log_weights: Tensor, varied: Tensor | None, gains: Tensor | None,
    numbers: list[float] | None, table: Tensor | None, field: bool, density: bool,
) -> Tensor:  # fmt: skip
    """The derivative in x of what `operator` makes, against `gradients`."""
    components = joined(means, log_weights, varied, gains, numbers, table)
    return mixture_pullback(x, components, gradients[0] if field else None, gradients[-1] if density else None)


@pullback.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def keep_more(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gradients, *tables, ctx.numbers, table, ctx.field, ctx.density = inputs
    ctx.save_for_backward(x, *tables, table, *gradients)


def backward_of_backward(ctx: Any, gradient: Tensor) -> Any:
    x, means, log_weights, varied, gains, table = ctx.saved_tensors[:6]
    gradients = list(ctx.saved_tensors[6:])
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        at = [t if again and t.requires_grad else t.detach().requires_grad_() for t in (x, *gradients)]
        components = joined(means, log_weights, varied, gains, ctx.numbers, table)
        made = mixture_pullback(at[0], components, at[1] if ctx.field else None, at[-1] if ctx.density else None)
    dx, *more = torch.autograd.grad(made, at, gradient, create_graph=again)
    return dx, more, *(None,) * 8


pullback.register_autograd(backward_of_backward, setup_context=keep_more)

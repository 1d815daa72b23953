"""The scalings around a network that let it see and predict numbers of unit variance (Karras et al. 2022, table 1)."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from halfbridge.kernels.arguments import accumulation, check_state
from halfbridge.kernels.combine import combine
from halfbridge.kernels.dispatch import select
from halfbridge.kernels.operators import transforming


def edm_precondition(
    net: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: float | Tensor, sigma_data: float = 0.5
) -> Tensor:
    """D(x; sigma) = c_skip x + c_out net(c_in x, c_noise), like x: `edm_input`, the network, `edm_output`.

    net: called with a state like x and labels (batch,); its output has x's shape and any floating dtype, as under autocast.
    """
    inner, label = edm_input(x, sigma, sigma_data)
    return edm_output(x, net(inner, label), sigma, sigma_data)


def edm_input(x: Tensor, sigma: float | Tensor, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """(c_in x, c_noise) with c_in = 1 / sqrt(sigma^2 + sigma_data^2) and c_noise = ln(sigma) / 4 (Karras et al. 2022).

    x: (batch, *sample), floating. sigma: the noise level, a positive number, or a tensor (batch,) or () on x's device whose
    values are not looked at: 0 has the label -inf, a negative one NaN. sigma_data: the data's standard deviation, positive, a
    constant of a graph that torch.compile makes.

    c_in x is like x; c_noise is (batch,), float64 for float64 states and float32 otherwise. In that dtype too the scalings
    are found and applied, for any sigma and sigma_data without overflow or cancellation, and the result is rounded once; a
    sample's bits do not depend on its batch. Differentiable in x to any order; a sigma that requires grad is refused.
    TypeError or ValueError for bad arguments.
    """
    check_state("`x`", x)
    levels, width = check_levels(x, sigma, sigma_data)
    dtype = accumulation(x.dtype)
    if not isinstance(levels, Tensor) and torch.compiler.is_compiling():
        levels = everywhere(levels, x)
    if isinstance(levels, Tensor):
        result: tuple[Tensor, Tensor] = dispatched("edm_input", (x,), levels.to(dtype), width)
        return result
    c = Scalings(levels, width)
    return combine([x], [c.into]), torch.full((len(x),), c.label, dtype=dtype, device=x.device)


def edm_output(x: Tensor, output: Tensor, sigma: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """c_skip x + c_out output, like x: c_skip = sigma_data^2 / (sigma^2 + sigma_data^2) and
    c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2) (Karras et al. 2022).

    output: what the network made of `edm_input`, of x's shape and device and any floating dtype. The rest is as there;
    differentiable in x and output to any order.
    """
    check_state("`x`", x)
    check_state("`output`", output)
    if output.shape != x.shape or output.device != x.device:
        raise ValueError(
            f"`output` has shape {tuple(output.shape)} on {output.device} but `x` has {tuple(x.shape)} on {x.device}; "
            "they must agree: return from the network what has the shape of its input"
        )
    levels, width = check_levels(x, sigma, sigma_data)
    if not isinstance(levels, Tensor):
        if output.dtype == x.dtype and not torch.compiler.is_compiling():
            c = Scalings(levels, width)
            return combine([x, output], [c.skip, c.out])
        levels = everywhere(levels, x)
    result: Tensor = dispatched("edm_output", (x, output), levels.to(accumulation(x.dtype)), width)
    return result


def check_levels(x: Tensor, sigma: Any, sigma_data: Any) -> tuple[float | Tensor, float]:
    """(sigma, sigma_data) as numbers, or sigma as a tensor (batch,)."""
    width = check_positive("sigma_data", sigma_data, x.dtype)
    if not isinstance(sigma, Tensor):
        return check_positive("sigma", sigma, x.dtype), width
    if not sigma.is_floating_point() or tuple(sigma.shape) not in ((), (len(x),)):
        raise ValueError(
            f"`sigma` has shape {tuple(sigma.shape)} and dtype {sigma.dtype}; pass ({len(x)},), one level for each sample, or "
            "(), and a floating dtype"
        )
    if sigma.device != x.device:
        raise ValueError(f"`sigma` is on {sigma.device} but `x` is on {x.device}; move it there, or pass a number")
    if sigma.requires_grad and torch.is_grad_enabled():
        raise ValueError("`sigma` requires grad, but only the states get one here; pass sigma.detach()")
    return sigma.expand(len(x)), width


def everywhere(level: float, x: Tensor) -> Tensor:
    """The level of every sample, in float64. A product: of torch.full a compiler would make a graph for each value."""
    return torch.ones(x.shape[:1], dtype=torch.float64, device=x.device) * level


def check_positive(name: str, value: Any, dtype: torch.dtype) -> float:
    """A positive number in the range in which states are scaled, as a float. By comparisons only: a compiled graph knows a
    number by those."""
    if not isinstance(value, Real):
        raise TypeError(f"`{name}` is a {type(value).__name__}; pass a Python float or, for sigma, a tensor")
    number = float(value)
    if not 0 < number <= torch.finfo(accumulation(dtype)).max:
        raise ValueError(f"`{name}` = {number} is no standard deviation of {dtype} states; pass a positive number")
    return number


class Scalings:
    """c_skip, c_out, c_in and c_noise (`skip`, `out`, `into`, `label`) of a noise level, in Python's floats, or of a tensor of
    them, in float64.
    """

    def __init__(self, sigma: float | Tensor, sigma_data: float) -> None:
        self.root: Any
        if isinstance(sigma, Tensor):
            sigma = sigma.double()
            self.root = torch.hypot(sigma, torch.full_like(sigma, sigma_data))
        else:
            self.root = math.hypot(sigma, sigma_data)
        self.sigma: Any = sigma
        self.data = sigma_data

    @property
    def skip(self) -> Any:
        return (self.data / self.root) ** 2

    @property
    def out(self) -> Any:
        """The smaller of sigma and sigma_data times what the larger is of the root: a ratio of the smaller could vanish."""
        small, large = self.data / self.root * self.sigma, self.sigma / self.root * self.data
        if isinstance(small, Tensor):
            return torch.where(self.sigma.abs() < self.data, small, large)
        return small if self.sigma < self.data else large

    @property
    def into(self) -> Any:
        return self.root.reciprocal() if isinstance(self.root, Tensor) else 1 / self.root

    @property
    def label(self) -> Any:
        return (self.sigma.log() if isinstance(self.sigma, Tensor) else math.log(self.sigma)) / 4


def scaled(x: Tensor, c: Tensor, inner: torch.dtype) -> Tensor:
    """c x in the dtype `inner`, with one number c for each sample."""
    return x.to(inner) * c.to(inner).view(-1, *(1,) * (x.dim() - 1))


def edm_input_reference(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`edm_input` without its checks, in eager torch, for sigma (batch,) in the inner dtype."""
    c = Scalings(sigma, sigma_data)
    return scaled(x, c.into, sigma.dtype).to(x.dtype), c.label.to(sigma.dtype)


def edm_output_reference(x: Tensor, output: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """`edm_output` without its checks, in eager torch, for sigma (batch,) in the inner dtype."""
    c = Scalings(sigma, sigma_data)
    total, other = scaled(x, c.skip, sigma.dtype), scaled(output, c.out, sigma.dtype)
    # fresh memory for a third tensor costs more than adding; a map over `output` alone cannot write into `total`
    return (total + other if transforming() else total.add_(other)).to(x.dtype)


def edm_scale_reference(x: Tensor, sigma: Tensor, sigma_data: float, part: str, dtype: torch.dtype) -> Tensor:
    """c x in `dtype`, c the scaling called `part` ("into", "skip" or "out"): what the gradients of the other two are."""
    return scaled(x, getattr(Scalings(sigma, sigma_data), part), sigma.dtype).to(dtype)


REFERENCES: dict[str, Callable[..., Any]] = {
    "edm_input": edm_input_reference,
    "edm_output": edm_output_reference,
    "edm_scale": edm_scale_reference,
}


def dispatched(kernel: str, states: tuple[Tensor, ...], *rest: Any) -> Any:
    """The kernel's result: through its operator where a graph or a gradient needs that, else straight from the backend."""
    operator = {"edm_input": edm_input_operator, "edm_output": edm_output_operator}[kernel]
    if torch.compiler.is_compiling():
        return operator(*states, *rest)
    if transforming():
        return REFERENCES[kernel](*states, *rest)
    backend, run = implementation(kernel, states[0])
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in states)
    return operator(*states, *rest) if recorded and backend != "reference" else run(*states, *rest)


def implementation(kernel: str, x: Tensor) -> tuple[str, Callable[..., Any]]:
    """(backend, function) for a state like x; the reference where it has no elements."""
    if x.numel() == 0:
        return "reference", REFERENCES[kernel]
    return select(kernel, x.device.type, x.dtype, x.numel())


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor in the memory order of x (channels_last, say) where each sample is a piece of memory, else contiguous."""
    kept = torch.empty_like(x, dtype=dtype)
    if x.dim() > 1 and kept.stride(0) * x.shape[0] != x.numel():  # len(x) would make a constant of a symbolic batch
        return torch.empty(x.shape, dtype=kept.dtype, device=x.device)
    return kept


def placed(result: Tensor, like: Tensor) -> Tensor:
    """The result with the strides that the operator promises for a state like `like`."""
    target = empty_like(like, result.dtype)
    return result if result.stride() == target.stride() else target.copy_(result)


@torch.library.custom_op("halfbridge::edm_scale", mutates_args=())
def edm_scale_operator(x: Tensor, sigma: Tensor, sigma_data: float, part: str, dtype: torch.dtype) -> Tensor:
    return placed(implementation("edm_scale", x)[1](x, sigma, sigma_data, part, dtype), x)


@torch.library.custom_op("halfbridge::edm_input", mutates_args=())
def edm_input_operator(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    inner, label = implementation("edm_input", x)[1](x, sigma, sigma_data)
    return placed(inner, x), label


@torch.library.custom_op("halfbridge::edm_output", mutates_args=())
def edm_output_operator(x: Tensor, output: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    return placed(implementation("edm_output", x)[1](x, output, sigma, sigma_data), x)


@edm_scale_operator.register_fake
def _(x: Tensor, sigma: Tensor, sigma_data: float, part: str, dtype: torch.dtype) -> Tensor:
    return empty_like(x, dtype)


@edm_input_operator.register_fake
def _(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    return empty_like(x), torch.empty_like(sigma, memory_format=torch.contiguous_format)


@edm_output_operator.register_fake
def _(x: Tensor, output: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    return empty_like(x)


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """For all three: the levels, what follows them, and the dtypes that gradients of the states must have."""
    states = [t for t in inputs if isinstance(t, Tensor)]
    ctx.save_for_backward(states.pop())
    ctx.rest, ctx.dtypes = inputs[len(states) + 1 :], [t.dtype for t in states]
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(output[1])


def scale_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (sigma,), (sigma_data, part, _) = ctx.saved_tensors, ctx.rest
    return edm_scale_operator(grad, sigma, sigma_data, part, *ctx.dtypes), None, None, None, None


def input_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return edm_scale_operator(grad, *ctx.saved_tensors, *ctx.rest, "into", *ctx.dtypes), None, None


def output_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    pieces = zip(("skip", "out"), ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
    of_states = (
        edm_scale_operator(grad, *ctx.saved_tensors, *ctx.rest, *piece) if wanted else None for *piece, wanted in pieces
    )
    return *of_states, None, None


edm_scale_operator.register_autograd(scale_backward, setup_context=save)
edm_input_operator.register_autograd(input_backward, setup_context=save)
edm_output_operator.register_autograd(output_backward, setup_context=save)

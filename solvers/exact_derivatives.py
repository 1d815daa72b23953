"""Networks whose operations torch differentiates as often as a loss asks for, and rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from halfbridge.kernels.arguments import accumulation

__all__ = ["exact_derivatives"]


@contextmanager
def exact_derivatives() -> Iterator[None]:
    """Inside, attention and layer norm are evaluated in their plain forms, whose derivatives of any order are right.

    torch's fused attention has no second derivative and says so. Its layer norm, and instance norm, have a third one that is
    wrong without a sign: their backward holds mean and deviation for constants when it is differentiated a second time, and
    their forward-mode rule when it is differentiated once (torch 2.13, by finite differences; pytorch issue 196700). Group norm,
    RMS norm, softmax, convolutions and pointwise functions are right. Evaluate inside; differentiate anywhere.
    """
    with sdpa_kernel(SDPBackend.MATH), _PlainNorms():
        yield


class _PlainNorms(TorchFunctionMode):
    """Puts the norms' plain forms in their place."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plain: Callable[..., Any] = PLAIN.get(func, func)
        return plain(*args, **(kwargs or {}))


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """torch.nn.functional.layer_norm, by a mean and a square root; float32 inside for half precision, as there."""
    if tuple(input.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
        raise ValueError(
            f"layer_norm: input has shape {tuple(input.shape)}, normalized_shape is {tuple(normalized_shape)}"
        )
    axes = tuple(range(-len(normalized_shape), 0))
    x = input.to(accumulation(input.dtype))
    centred = x - x.mean(dim=axes, keepdim=True)
    out = centred * (centred.square().mean(dim=axes, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    out = out if bias is None else out + bias
    return out if torch.is_autocast_enabled(input.device.type) else out.to(input.dtype)


def instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """torch.nn.functional.instance_norm; without running statistics it is group norm with a group for each channel."""
    if running_mean is None and running_var is None and use_input_stats:
        return torch.nn.functional.group_norm(input, input.shape[1], weight, bias, eps)
    return torch.nn.functional.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


PLAIN: dict[Any, Callable[..., torch.Tensor]] = {
    torch.nn.functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    torch.nn.functional.instance_norm: instance_norm,
}

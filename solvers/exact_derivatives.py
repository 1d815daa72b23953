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
    """Inside, attention and norms are evaluated in forms whose derivatives of any order are right, in both modes.

    torch's fused attention has no second derivative and says so. Its layer norm, and instance norm, have a third one that is
    wrong without a sign: their backward holds mean and deviation for constants when it is differentiated a second time, and
    their forward-mode rule when it is differentiated once (torch 2.13, by finite differences; pytorch issue 196700). Group norm
    is right, but its forward-mode rule refuses maps that are not contiguous, such as those in channels_last. RMS norm, softmax,
    convolutions and pointwise functions are right. Batch norm by the batch's statistics is left as wrong as layer norm: it mixes
    the samples, which nothing that is built on this allows. Evaluate inside; differentiate anywhere.

    Replaced are the functions of torch and torch.nn.functional, which the modules call; not torch.ops.aten, which a graph
    that was exported calls.
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


def native_layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """torch.native_layer_norm: layer norm, the mean and the reciprocal deviation."""
    axes = tuple(range(-len(normalized_shape), 0))
    x = input.to(accumulation(input.dtype))
    mean = x.mean(dim=axes, keepdim=True)
    root = ((x - mean).square().mean(dim=axes, keepdim=True) + eps).rsqrt()
    return layer_norm(input, normalized_shape, weight, bias, eps), mean, root


def group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """torch.nn.functional.group_norm of contiguous maps: of others torch's forward-mode rule asks for a view there is not."""
    return torch.nn.functional.group_norm(input.contiguous(), num_groups, weight, bias, eps)


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
    """torch.nn.functional.instance_norm; by the statistics of its input it is group norm with a group for each channel."""
    if not use_input_stats:  # an affine map: torch's derivatives are right
        return torch.nn.functional.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    if running_mean is not None or running_var is not None:
        with torch.no_grad():  # for what it does to the running statistics
            torch.nn.functional.instance_norm(
                input.detach(), running_mean, running_var, None, None, use_input_stats, momentum, eps
            )
    return group_norm(input, input.shape[1], weight, bias, eps)


def torch_instance_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    """torch.instance_norm, whose arguments stand in another order."""
    return instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


PLAIN: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    torch.native_layer_norm: native_layer_norm,
    torch.nn.functional.group_norm: group_norm,
    torch.group_norm: group_norm,
    torch.nn.functional.instance_norm: instance_norm,
    torch.instance_norm: torch_instance_norm,
}

"""The bridge between networks, net(x, t) with t of shape (batch,), and fields, f(t, x) with t a float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from halfbridge.solvers.field import Field, check_output
from halfbridge.solvers.processes import DiscreteVP, Process

__all__ = ["Labels", "Network", "as_field", "default_labels", "network_labels"]

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""net(x, label) -> like x; x of shape (batch, *shape), label of shape (batch,)."""

Labels = Callable[[Any], Any]
"""From a time (a float, or a tensor of them) to the label that the network was trained with."""


def default_labels(process: Process) -> Labels:
    """What a network is told at time t: the step minus 1 for DiscreteVP (diffusers counts from 0), else t itself."""
    if isinstance(process, DiscreteVP):
        return lambda t: t - 1
    return lambda t: t


def network_labels(labels: Labels, t: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """labels(t) for every sample of x: shape (batch,), on x's device, in x's dtype (float32 for half states).

    t: one time, or a (batch,) tensor of times. The label is computed in t's own precision and rounded once.
    """
    dtype = torch.float32 if x.element_size() < 4 else x.dtype
    label = torch.as_tensor(labels(t), dtype=dtype, device=x.device)
    if label.ndim > 1 or label.numel() not in (1, x.shape[0]):
        raise ValueError(
            f"labels(t) has shape {tuple(label.shape)} for a batch of {x.shape[0]}; return one number for each time"
        )
    return label.reshape(-1).expand(x.shape[0]).contiguous()


def as_field(net: Network, process: Process, predicts: str = "noise", *, labels: Labels | None = None) -> Field:
    """The field f(t, x) = net(x, labels(t)) of a network that predicts `predicts` under `process`.

    net: called with x of shape (batch, *shape) and the label as a (batch,) tensor in the state's dtype (float32 for
    half states) on its device; returns a tensor like x. A module is used as it is: put it in eval mode first, and
    sample under `torch.no_grad()` unless gradients are wanted.
    predicts: "noise", "score", "data" or "velocity".
    labels: from time to the network's label, a function of a float; default: see `default_labels`. A network that was
    trained on the log-SNR takes `labels=process.half_log_snr`.

    Raises FieldOutputError, a ValueError, when the network's output has another shape, dtype or device than x, and
    ValueError when a module fails on a state of a dtype that none of its floating parameters has.
    """
    if not callable(net):
        raise TypeError(f"net must be callable as net(x, t), got {type(net).__name__}")
    to_label = default_labels(process) if labels is None else labels

    def field(t: float, x: torch.Tensor) -> torch.Tensor:
        label = network_labels(to_label, t, x)
        try:
            out = net(x, label)
        except RuntimeError as error:
            _explain_dtype(net, x, error)
            raise
        check_output(out, x, t, " (from the network)")
        return out

    return Field(process, field, predicts)


def _explain_dtype(net: Network, x: torch.Tensor, error: RuntimeError) -> None:
    """Raise ValueError in place of torch's error on types where the network's dtype is not the state's.

    Asked only after a failure: a module may cast its input itself, or run under autocast, and then a difference is fine.
    """
    if not isinstance(net, torch.nn.Module) or "type" not in str(error):
        return
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()}
    if not dtypes or x.dtype in dtypes:
        return
    names = sorted(map(str, dtypes))
    raise ValueError(
        f"the state is {x.dtype} and the network {type(net).__name__} is {' and '.join(names)}; convert one: "
        f"x.to({names[0]}) or net.to({x.dtype})"
    ) from error

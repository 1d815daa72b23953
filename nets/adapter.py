"""The bridge between networks, net(x, t) with t of shape (batch,), and fields, f(t, x) with t a float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from halfbridge.nets.guidance import guided
from halfbridge.nets.labels import Labels, default_labels, network_labels
from halfbridge.solvers.field import PREDICTIONS, Field, FieldOutputError, check_output
from halfbridge.solvers.processes import EDM, Process

__all__ = ["Labels", "Network", "as_field", "check_prediction", "default_labels", "first_half", "network_labels"]

Network = Callable[..., torch.Tensor]
"""net(x, label) -> like x; x of shape (batch, *shape), label of shape (batch,). With classes: net(x, label, classes)."""


def as_field(
    net: Network,
    process: Process,
    predicts: str | None = None,
    *,
    labels: Labels | None = None,
    learned_variance: bool = False,
    classes: int | torch.Tensor | None = None,
    guidance: float = 0.0,
) -> Field:
    """The field f(t, x) = net(x, labels(t)) of a network that predicts `predicts` under `process`.

    net: called with x of shape (batch, *shape) and the label as a (batch,) tensor in the state's dtype (float32 for
    half states) on its device; returns a tensor like x. A module is used as it is: put it in eval mode first, and
    sample under `torch.no_grad()` unless gradients are wanted.
    predicts: "noise", "score", "data" or "velocity". None: what the network says of itself, as a `Precondition` says "data",
    else "noise" (see `check_prediction`).
    labels: from time to the network's label, a function of a float; default: see `default_labels`. A network that was
    trained on the log-SNR takes `labels=process.half_log_snr`; `nets.labels` has `scaled` (time times a factor) and `steps`
    (the nearest of n timesteps, as int64).
    learned_variance: the network returns (batch, 2 C, ...) for x of shape (batch, C, ...), as improved DDPM's do (Nichol and
    Dhariwal 2021): the first C channels are the prediction, the rest parametrises a variance, which no solver here uses
    and which is dropped.
    classes, guidance: for a network called as net(x, label, classes). classes is an int for all samples, or an integer
    tensor (batch,) whose rows are those of x, so that the samples first .. first + n - 1 of a batch are a field with
    classes[first : first + n]; -1 is no class, and None is that for all. With guidance w the prediction is
    (1 + w) net(x, label, classes) - w net(x, label, -1), in one call (see `guided`; Ho and Salimans 2022).

    Raises FieldOutputError, a ValueError, when the network's output has another shape, dtype or device than x, and
    ValueError when a module fails on a state of a dtype that none of its floating parameters has, for classes that the
    network does not have, for an x of another number of rows than classes, and where the network says that it predicts
    something else, under another process or by the time itself.
    """
    if not callable(net):
        raise TypeError(f"net must be callable as net(x, t), got {type(net).__name__}")
    predicts = check_prediction(net, process, predicts, labels)
    to_label = default_labels(process) if labels is None else labels
    call = guided(net, classes, guidance)

    def field(t: float, x: torch.Tensor) -> torch.Tensor:
        label = network_labels(to_label, t, x)
        try:
            out: torch.Tensor = call(x, label)
        except RuntimeError as error:
            _explain_dtype(net, x, error)
            raise
        if learned_variance:
            out = first_half(out, x)
        check_output(out, x, t, " (from the network)")
        return out

    return Field(process, field, predicts)


def check_prediction(net: Network, process: Process, predicts: str | None = None, labels: Labels | None = None) -> str:
    """`predicts`, or where that is None `net.predicts`, or "noise" where the network says nothing.

    A network says it by an attribute `predicts`, one of the four. With an attribute `process` besides, it takes the states of
    that process (None: of hb.EDM, with any limits) and its default labels. ValueError where predicts, process or labels
    say otherwise: the numbers would be those of another problem.
    """
    own = getattr(net, "predicts", None)
    if own not in PREDICTIONS:
        return "noise" if predicts is None else predicts
    who = f"the network {type(net).__name__}"
    if predicts not in (None, own):
        raise ValueError(f"predicts = {predicts!r}, but {who} predicts {own!r}; pass predicts={own!r}")
    made_for = getattr(net, "process", process)
    same = made_for == process or (isinstance(process, EDM) and isinstance(made_for, EDM | None))
    if isinstance(process, Process) and not same:
        known = "hb.EDM, whose time is the noise level (it has process = None)" if made_for is None else repr(made_for)
        raise ValueError(
            f"process = {process!r}, but {who} takes states of {known}; pass that, or make the network with process="
        )
    if labels is not None and hasattr(net, "process"):
        raise ValueError(f"labels are given, but {who} finds its own from the default ones; leave labels out")
    return str(own)


def first_half(out: Any, x: torch.Tensor) -> torch.Tensor:
    """out[:, :C] of a network's output (batch, 2 C, ...) for x (batch, C, ...); FieldOutputError for any other shape."""
    wanted = (len(x), 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else ()
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted:
        got = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise FieldOutputError(
            f"with learned_variance the network must return shape {wanted}, twice the channels of x of shape "
            f"{tuple(x.shape)}, but it returned {got}; pass learned_variance=False if it returns the prediction alone"
        )
    return out[:, : x.shape[1]]


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

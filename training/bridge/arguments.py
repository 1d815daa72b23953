"""What `fit_bridge` can train: checks of its arguments, before anything is written."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from halfbridge.solvers.field import Field, check_output
from halfbridge.training.arguments import check_network, class_count
from halfbridge.training.bridge.bridge_plots import check_plots
from halfbridge.training.bridge.ends import End, Examples, check_ends, check_rows
from halfbridge.training.bridge.monitors import StopRule
from halfbridge.training.bridge.network import label
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.data import Dataset
from halfbridge.training.modes import uncompiled
from halfbridge.training.settings import Settings, settings_with
from halfbridge.training.workers import Workers

__all__ = ["check", "ends", "settings_of"]


def settings_of(settings: Settings | None, changes: dict[str, Any]) -> Settings:
    """`settings_with`, refusing what bridges do not know."""
    made = settings_with(settings, changes)
    if made.class_dropout:
        raise ValueError(f"class_dropout = {made.class_dropout}, but a bridge's networks have no classes; leave it out")
    return made


def ends(start: Any, end: Any, nets: dict[str, torch.nn.Module]) -> tuple[End, End]:
    """The two ends as laws, data on the CPU going over to the networks. ValueError or TypeError, naming the end."""
    for name, net in nets.items():
        if not isinstance(net, torch.nn.Module):
            raise TypeError(f"`{name}` is a {type(net).__name__}; pass a torch.nn.Module net(x, t), such as an MLP")
    device = next((p.device for net in nets.values() for p in net.parameters()), None)
    both = _law("start", start, device), _law("end", end, device)
    check_ends(*both)
    return both


def check(
    nets: dict[str, torch.nn.Module],
    law: End,
    reference: ReferenceChain,
    first: Field | None,
    stop: StopRule | None,
    settings: Settings,
    workers: Workers,
    plots: bool,
) -> None:
    """Refuse what cannot be trained; `law` is one of the two ends. Each network is tried on one example of it."""
    if not isinstance(reference, ReferenceChain):
        raise TypeError(
            f"`reference` is a {type(reference).__name__}; pass a ReferenceChain, such as ReferenceChain(hb.Brownian(), 20)"
        )
    if stop is not None and not isinstance(stop, StopRule):
        raise TypeError(f"`stop` is a {type(stop).__name__}; pass a StopRule, such as StopRule(kl=0.1, error=0.05)")
    if first is not None and not isinstance(first, Field):
        raise TypeError(
            f"`first` is a {type(first).__name__}; pass a Field, which halfbridge.nets.as_field makes of a network, or the "
            "folder of a run of fit_score"
        )
    if first is not None and first.process != reference.process:
        raise ValueError(f"`first` belongs to {first.process!r}, but the reference is {reference.process!r}")
    if nets["forward_net"] is nets["backward_net"]:
        raise ValueError(
            "`forward_net` and `backward_net` are one network; pass two, each is trained for its direction"
        )
    like = law.sample(1, 0)
    for name, net in nets.items():
        if class_count(net):
            raise ValueError(f"`{name}` has classes, which bridges do not know; build it without")
        parameter = check_network(net, settings, workers, f"`{name}`")
        for what in ("dtype", "device"):
            if getattr(parameter, what) != getattr(like, what):
                raise ValueError(
                    f"`{name}` has {what} {getattr(parameter, what)} and `start` gives states of {getattr(like, what)}; convert "
                    "one (an hb.reference law gives float64 on the CPU: net.double(), or Examples of its samples, whose device= "
                    "says where they go)"
                )
    for k, (name, net) in zip((0, reference.steps), nets.items(), strict=True):
        tried = copy.deepcopy(uncompiled(net)).eval()
        with torch.no_grad():
            check_output(tried(like, label(reference, k, like, tried)), like, reference.times[k], f" (from `{name}`)")
    if first is not None:
        with torch.no_grad():
            _ = first(reference.times[-1], like)
    if plots:
        check_plots()


def _law(name: str, end: Any, device: torch.device | None) -> End:
    """`end` as a law that was seen to give a sample."""
    if isinstance(end, Dataset):
        end = end.examples
    if not callable(getattr(end, "sample", None)):
        check_rows(name, end)
        return Examples(end, device if end.device == torch.device("cpu") else None)
    try:
        one = end.sample(1, 0, 0)
    except TypeError as error:
        raise TypeError(
            f"`{name}` is a {type(end).__name__}, whose sample(n, seed, first) fails: {error}; pass data, or a law of "
            "hb.reference or halfbridge.training.bridge"
        ) from error
    if not isinstance(one, Tensor) or one.ndim < 2 or len(one) != 1 or not one.is_floating_point():
        got = f"{tuple(one.shape)}, {one.dtype}" if isinstance(one, Tensor) else f"a {type(one).__name__}"
        raise ValueError(f"`{name}`.sample(1, 0, 0) is {got}; it must be a floating tensor (1, *shape)")
    law: End = end
    return law

"""Kernels whose means, and perhaps variances, are networks that are told the time of the state that a step leaves."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from halfbridge.nets import MLP, UNet
from halfbridge.nets.conditioned import SharedLabels
from halfbridge.nets.labels import network_labels
from halfbridge.solvers.field import check_output
from halfbridge.training.bridge.covariances import Covariance, Diagonal
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.targets import TARGETS, target_named
from halfbridge.training.bridge.transitions import Sum, Transitions

__all__ = ["NetworkTransitions", "VarianceHead", "interval_labels", "label", "shares_labels", "told"]


def shares_labels(net: torch.nn.Module) -> bool:
    """Whether the network takes `SharedLabels`, which is to embed a chain's few labels once and not once a row: MLP and UNet
    do. Of a class derived from them nothing is known, and hooks see what it is called with; like any other they are called
    with t of shape (batch,)."""
    return type(net) in (MLP, UNet) and not (net._forward_hooks or net._forward_pre_hooks)


def label(reference: ReferenceChain, k: int, x: Tensor, net: torch.nn.Module) -> Tensor | SharedLabels:
    """What a network is told with x = x_k: times[k], (batch,), in x's dtype (float32 for half states)."""
    if shares_labels(net):
        return SharedLabels(network_labels(float, reference.times[k], x[:1]), None)
    return network_labels(float, reference.times[k], x)


def told(t: Tensor | SharedLabels) -> Tensor:
    """A label of the batch, to name in a message: 0-dim."""
    return t.values[0] if isinstance(t, SharedLabels) else t[0]


def interval_labels(reference: ReferenceChain, direction: Direction, like: Tensor) -> Tensor:
    """(N,): what networks of that direction are told of the state that they leave across each interval, as `label` has it."""
    first = min(direction.leaves(reference.steps))
    times = torch.tensor(reference.times[first : first + reference.steps], dtype=torch.float64, device="cpu")
    return network_labels(lambda t: t, times, like[:1].expand(len(times), *like.shape[1:]))


class VarianceHead(torch.nn.Module):
    """log r(x, t) of a kernel's variances 2 gamma r: like x for the form "diagonal", (batch, 1, ..., 1) for "scalar".

    net: called as the mean's network, with the same label. log r is what it returns less what it returned as it was given,
    which a frozen copy, evaluated too, knows; "scalar" takes the mean over elements. So r is positive, and begins at 1, the
    variances of the reference, from any network, trained ones too; in train mode of one that drops out, near 1.
    """

    def __init__(self, net: torch.nn.Module, form: str) -> None:
        super().__init__()
        if form not in ("scalar", "diagonal"):
            raise ValueError(f"`form` = {form!r} of a variance that a network gives must be 'scalar' or 'diagonal'")
        self.net, self.form = net, form
        self.given = copy.deepcopy(net).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> VarianceHead:
        """As of modules; the network as it was given stays in eval mode."""
        super().train(mode)
        self.given.eval()
        return self

    def forward(self, x: Tensor, t: Tensor | SharedLabels) -> Tensor:
        out: Tensor = self.net(x, t)
        check_output(out, x, told(t), " (from the network of variances)")
        with torch.no_grad():
            given = self.given(x, t)
        out = out - given
        return out if self.form == "diagonal" else out.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))


class NetworkTransitions(Transitions):
    """Kernels from a network b(x, t), called with t = reference.times[k] at x_k in both directions.

    net         b(x, t) -> like x, t (batch,); put it in eval mode
    target      what it was regressed onto, a name of `TARGETS`, which says what it stands for:
                  "mean", "drift", "increment"  the mean in residual form, M_k(x) = x + gamma b
                  "score"                       grad log p_k, M_k(x) = 2 x - M'(x) + 2 gamma b, M' the mean of `teacher` at x
                gamma the step's size, so that b is of the size of a drift, whatever the number of steps
    teacher     the kernels that it was fitted against, for "score" alone: these are evaluated too, and with them those of all
                half-bridges before
    spread      None: the variance 2 gamma I. A covariance for each interval, or a `VarianceHead`: 2 gamma e^{log r(x, t)}
    factors     of the head's variances, one for each interval, or None; set once they are known: see `variance_factors`

    Raises ValueError for an unknown target, a missing teacher and another number of covariances.
    """

    def __init__(
        self,
        reference: ReferenceChain,
        direction: Direction,
        net: torch.nn.Module,
        target: str = "mean",
        *,
        teacher: Transitions | None = None,
        spread: Sequence[Covariance] | VarianceHead | None = None,
    ) -> None:
        super().__init__(reference, direction)
        if target_named(target).teacher_stays and teacher is None:
            raise ValueError(f"`target` = {target!r} makes the mean from the teacher's; pass teacher=")
        if isinstance(spread, Sequence) and len(spread) != reference.steps:
            raise ValueError(f"`spread` has {len(spread)} covariances; pass one a step, {reference.steps}")
        self.net, self.target, self.spread = net, target, spread
        self.factors: Sequence[float] | None = None
        self.teacher = teacher if TARGETS[target].teacher_stays else None

    def terms(self, k: int, x: Tensor) -> Sum:
        gamma = self.gamma(k)
        b = self.net(x, label(self.reference, k, x, self.net))
        check_output(b, x, self.reference.times[k], f" (from the {self.direction.value} network)")
        if self.teacher is None:
            return Sum([x, b], [1.0, gamma])
        return TARGETS[self.target].mean(x, b, self.teacher.terms(self.direction.arrives(k), x), gamma)

    def to(self, device: torch.device | str) -> None:
        """Move the networks, and those of the teacher where its means are called, in place."""
        self.net.to(device)
        if isinstance(self.spread, VarianceHead):
            self.spread.to(device)
        if isinstance(self.teacher, NetworkTransitions):
            self.teacher.to(device)

    def covariance(self, k: int, x: Tensor) -> Covariance:
        if self.spread is None:
            return super().covariance(k, x)
        if not isinstance(self.spread, VarianceHead):
            return self.spread[self.direction.interval(k)]
        factor = 1.0 if self.factors is None else self.factors[self.direction.interval(k)]
        r = self.spread(x, label(self.reference, k, x, self.spread.net)).exp()
        try:
            return Diagonal(2.0 * self.gamma(k) * factor * r)
        except ValueError as error:
            raise FloatingPointError(
                f"the {self.direction.value} network's variances at t = {self.reference.times[k]:.6g} left the positive numbers: "
                f"{error}; lower lr, or scale the data to unit size"
            ) from error

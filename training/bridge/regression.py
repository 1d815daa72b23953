"""The loss of a half-bridge: what a batch of pairs asks of the networks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from halfbridge.nets.adapter import Network
from halfbridge.nets.conditioned import SharedLabels
from halfbridge.solvers.field import check_output
from halfbridge.solvers.nearest import nearest
from halfbridge.training.bridge.network import VarianceHead, told

__all__ = ["WEIGHTINGS", "Batch", "Regression", "check_weighting"]

WEIGHTINGS = ("kl", "plain")


class Batch(NamedTuple):
    """Pairs of several steps: rows of one regression."""

    here: Tensor
    """x_k, (batch, *shape)."""
    value: Tensor
    """What is regressed onto, like `here`."""
    label: Tensor | SharedLabels
    """The time of x_k, (batch,), as networks take it."""
    gamma: Tensor
    """The step sizes, (batch,) float64."""
    known: Tensor
    """What `value`, being an expectation, leaves out of the spread of the next state, over 2 gamma, (batch,) float64: 0 but for
    bridge matching."""


class Regression(torch.nn.Module):
    """w |b - wanted|^2 for each row, the mean over elements; with a variance head, plus that of its own regression.

    wanted      (value - here)/gamma for the targets "mean" and "increment", whose kernels have the mean here + gamma b;
                the value itself for "drift" and "score": see `NetworkTransitions`
    weighting   "kl": w = c^2/(2 gamma), c the coefficient of b in the kernel's mean, gamma, or 2 gamma for "score". This is the
                squared error of the mean in units of the kernel's variance: half of it, summed over elements and steps, is the
                KL between chains up to a constant, whatever the target, and a step's noise alone makes it 1. "mean" and
                "drift" are one loss then, but for rounding.
                "plain": the squared error of the target itself, as De Bortoli et al. 2021 write eqs 12 and 13: w = gamma^2 for
                "mean" and "increment", 1 for "drift" and "score". The same where all step sizes are equal, up to a factor
    head        log r at `here` by (log r + q/r)/2, q = (value - M(here))^2/(2 gamma) + known, M detached. Its minimiser is
                E[q | here], that of the squared error in NPR-DPM (Bao et al. 2022b), for any M: the best variance for the mean
                as it is. But it weighs errors as KL between kernels does, relative to r, so that small ones are learned too
    """

    def __init__(self, target: str, weighting: str = "kl", head: VarianceHead | None = None) -> None:
        super().__init__()
        check_weighting(weighting)
        self.target, self.weighting, self.head = target, weighting, head

    def forward(self, net: Network, batch: Batch) -> Tensor:
        """The loss of each row, (batch,)."""
        here, value = batch.here, batch.value
        gamma = batch.gamma.to(here).view(-1, *[1] * (here.ndim - 1))
        b = net(here, batch.label)
        check_output(b, here, told(batch.label))
        error = b - ((value - here) / gamma if self._is_mean else value)
        loss: Tensor = self._weight(batch.gamma).to(here) * error.square().flatten(1).mean(1)
        if self.head is None:
            return loss
        ratio = gamma / 2.0 * error.detach().square() + batch.known.to(here).view_as(gamma)
        log_r = self.head(here, batch.label)
        likely: Tensor = log_r + ratio * (-log_r).exp()
        return loss + 0.5 * likely.flatten(1).mean(1)

    def _weight(self, gamma: Tensor) -> Tensor:
        if self.weighting == "plain":
            return gamma.square() if self._is_mean else torch.ones_like(gamma)
        return 2.0 * gamma if self.target == "score" else gamma / 2.0

    @property
    def _is_mean(self) -> bool:
        return self.target in ("mean", "increment")


def check_weighting(name: str) -> None:
    """ValueError for a weighting that is none of WEIGHTINGS."""
    if name not in WEIGHTINGS:
        raise ValueError(f"`weighting` = {name!r} is no weighting of a loss; {nearest(name, WEIGHTINGS)}")

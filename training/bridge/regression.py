"""The loss of a half-bridge: what a batch of pairs asks of the networks."""

from __future__ import annotations

import difflib
from typing import NamedTuple

import torch
from torch import Tensor

from halfbridge.nets.adapter import Network
from halfbridge.nets.conditioned import SharedLabels
from halfbridge.training.bridge.network import RESIDUAL, VarianceHead

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
    """w |learned - value|^2 for each row, the mean over elements; with a variance head, plus that of its own regression.

    learned     here + gamma b for the targets "mean" and "increment", b for "drift" and "score": see `NetworkTransitions`
    weighting   "kl": w = c^2/(2 gamma), c the coefficient of `learned` in the kernel's mean, 1, gamma or 2 gamma. This is the
                squared error of the mean in units of the kernel's variance: half of it, summed over elements and steps, is the
                KL between chains up to a constant, whatever the target, and a step's noise alone makes it 1.
                "plain": w = 1, the squared error of the target itself, as De Bortoli et al. 2021 write eqs 12 and 13. The same
                where all step sizes are equal, up to a factor
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
        learned = here + gamma * b if self.target in RESIDUAL else b
        loss: Tensor = (learned - value).square().flatten(1).mean(1)
        if self.weighting == "kl":
            loss = self._weight(batch.gamma).to(here) * loss
        if self.head is None:
            return loss
        ratio = (value - learned.detach()).square() / (2.0 * gamma) + batch.known.to(here).view_as(gamma)
        log_r = self.head(here, batch.label)
        likely: Tensor = log_r + ratio * (-log_r).exp()
        return loss + 0.5 * likely.flatten(1).mean(1)

    def _weight(self, gamma: Tensor) -> Tensor:
        c = {"drift": gamma, "score": 2.0 * gamma}.get(self.target, torch.ones_like(gamma))
        return c.square() / (2.0 * gamma)


def check_weighting(name: str) -> None:
    """ValueError for a weighting that is none of WEIGHTINGS."""
    if name not in WEIGHTINGS:
        near = difflib.get_close_matches(str(name), WEIGHTINGS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "'kl' is relative to the kernel's variance, 'plain' is not"
        raise ValueError(f"`weighting` = {name!r} is not one of {', '.join(map(repr, WEIGHTINGS))}; {hint}")

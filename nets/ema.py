"""Exponential moving average of a network's parameters."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch

__all__ = ["EMA"]

Module = TypeVar("Module", bound=torch.nn.Module)


class EMA(Generic[Module]):
    """After each optimiser step, average <- d average + (1 - d) parameters (Polyak and Juditsky 1992).

    model: the network being trained; `EMA.model` is the averaged copy, in eval mode and without gradients.
    decay: d in [0, 1). With `warmup` the k-th update (k = 1, 2, ...) uses d = min(decay, k / (k + 9)): the random
    initial network is gone after the first updates (its weight after k of them is prod_j j / (j + 9), 1e-5 at k = 10),
    and a short run averages over its last tenth instead of over all of itself. Without, the average starts from the
    initial network and keeps decay^k of it.

    Buffers and integer parameters are copied, not averaged. Averages are kept in the parameter's dtype.
    """

    def __init__(self, model: Module, decay: float = 0.999, *, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay = {decay} must be in [0, 1); 0.999 remembers about a thousand updates")
        self.source, self.decay, self.warmup = model, decay, warmup
        self.updates = 0
        self.model: Module = copy.deepcopy(model).eval().requires_grad_(False)

    def rate(self) -> float:
        """The d of the next update."""
        k = self.updates + 1
        return min(self.decay, k / (k + 9)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Take the source's present parameters into the average."""
        weight = 1.0 - self.rate()
        averages: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for average, value in zip(self.model.parameters(), self.source.parameters(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:
                average.copy_(value)
        if averages:
            torch._foreach_lerp_(averages, values, weight)
        for kept, buffer in zip(self.model.buffers(), self.source.buffers(), strict=True):
            kept.copy_(buffer)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as if never interrupted."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])

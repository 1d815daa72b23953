"""Exponential moving average of a network's parameters."""

from __future__ import annotations

import copy
import operator
from typing import Any, Generic, TypeVar

import torch

from halfbridge.kernels import ParameterAverages

__all__ = ["EMA"]

Module = TypeVar("Module", bound=torch.nn.Module)
HALF = (torch.float16, torch.bfloat16)


class EMA(Generic[Module]):
    """After each optimiser step, average <- d average + (1 - d) parameters (Polyak and Juditsky 1992).

    model: the network being trained; `EMA.model` is the averaged copy, in eval mode and without gradients.
    decay: d in [0, 1). With `warmup` the k-th update (k = 1, 2, ...) uses d = min(decay, k / (k + 9)): the random
    initial network is gone after the first updates (its weight after k of them is prod_j j / (j + 9), 1e-5 at k = 10),
    and a short run averages over its last tenth instead of over all of itself. Without, the average starts from the
    initial network and keeps decay^k of it.

    Buffers and integer parameters are copied, not averaged. Averages of float16 and bfloat16 parameters are kept in float32,
    where a small 1 - d is not rounded away, and rounded into the copy after each update; a parameter of the copy that was
    written to in between is averaged from its new value on. The others are kept in the copy itself.
    """

    def __init__(self, model: Module, decay: float = 0.999, *, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay = {decay} must be in [0, 1); 0.999 remembers about a thousand updates")
        self.source, self.decay, self.warmup = model, decay, warmup
        self.updates = 0
        self.model: Module = copy.deepcopy(model).eval().requires_grad_(False)
        self._wide: dict[str, torch.Tensor] = {}
        self._pairs: ParameterAverages | None = None

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
        rounded: list[tuple[torch.Tensor, torch.Tensor]] = []
        for (name, average), value in zip(self.model.named_parameters(), self.source.parameters(), strict=True):
            if not average.is_floating_point():
                average.copy_(value)
                continue
            values.append(value)
            if average.dtype in HALF:
                averages.append(self._unrounded(name, average))
                rounded.append((average, averages[-1]))
            else:
                averages.append(average)
        self._pairs_of(averages, values).update(weight)
        for half, wide in rounded:
            half.copy_(wide)
        for kept, buffer in zip(self.model.buffers(), self.source.buffers(), strict=True):
            kept.copy_(buffer)
        self.updates += 1

    def _unrounded(self, name: str, average: torch.Tensor) -> torch.Tensor:
        """The float32 average of which `average` is the rounding; where it is not, `average` itself."""
        wide = self._wide.get(name)
        if wide is None or wide.shape != average.shape:
            wide = average.float()
        else:
            wide = wide.to(average.device)
            torch.where(wide.to(average.dtype) == average, wide, average.float(), out=wide)
        self._wide[name] = wide
        return wide

    def _pairs_of(self, averages: list[torch.Tensor], values: list[torch.Tensor]) -> ParameterAverages:
        """What updates these tensors: the last one, if it does."""
        last = self._pairs
        if last is None or not all(
            len(a) == len(b) and all(map(operator.is_, a, b))
            for a, b in ((last.averages[0], averages), (last.parameters, values))
        ):
            last = self._pairs = ParameterAverages(averages, values)
        return last

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as if never interrupted."""
        return {"updates": self.updates, "model": self.model.state_dict(), "wide": dict(self._wide)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])
        self._wide = {name: wide.clone() for name, wide in state.get("wide", {}).items()}

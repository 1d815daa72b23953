"""Exponential moving averages of a network's parameters."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from halfbridge.kernels import ParameterAverages

__all__ = ["EMA"]

Module = TypeVar("Module", bound=torch.nn.Module)
HALF = (torch.float16, torch.bfloat16)


class EMA(Generic[Module]):
    """After each optimiser step, average <- d average + (1 - d) parameters (Polyak and Juditsky 1992).

    model: the network being trained; `EMA.model` is the averaged copy, in eval mode and without gradients.
    decay: d in [0, 1), or several, of which each has an average of its own: `EMA.models`, in their order; `EMA.model` is the
    first. The parameters are read once for all of them.

    With `warmup` the k-th update (k = 1, 2, ...) uses d = min(decay, k / (k + 9)): the random
    initial network is gone after the first updates (its weight after k of them is prod_j j / (j + 9), 1e-5 at k = 10),
    and a short run averages over its last tenth instead of over all of itself. Without, the average starts from the
    initial network and keeps decay^k of it.

    Buffers and integer parameters are copied, not averaged. Averages of float16 and bfloat16 parameters are kept in float32,
    where a small 1 - d is not rounded away, and rounded into the copy after each update; a parameter of the copy that was
    written to in between is averaged from its new value on. The others are kept in the copy itself.

    ValueError for a decay outside [0, 1), for no decay and for one that is there twice.
    """

    def __init__(self, model: Module, decay: float | Sequence[float] = 0.999, *, warmup: bool = True) -> None:
        self.decays = tuple(decay) if isinstance(decay, Sequence) else (decay,)
        for d in self.decays:
            if not 0.0 <= d < 1.0:
                raise ValueError(f"decay = {d} must be in [0, 1); 0.999 remembers about a thousand updates")
        if len(set(self.decays)) != max(1, len(self.decays)):
            raise ValueError(
                f"decay = {decay!r} must hold different numbers, at least one: each has an average of its own"
            )
        self.source, self.decay, self.warmup = model, self.decays[0], warmup
        self.updates = 0
        self.models: tuple[Module, ...] = tuple(copy.deepcopy(model).eval().requires_grad_(False) for _ in self.decays)
        self._wide: list[dict[str, torch.Tensor]] = [{} for _ in self.decays]
        self._plan: Plan | None = None
        self._pairs: ParameterAverages | None = None

    @property
    def model(self) -> Module:
        """The average of the first decay."""
        return self.models[0]

    def rates(self) -> tuple[float, ...]:
        """The d of the next update, for each decay."""
        k = self.updates + 1
        return tuple(min(d, k / (k + 9)) if self.warmup else d for d in self.decays)

    def rate(self) -> float:
        """The d of the next update of `model`."""
        return self.rates()[0]

    @torch.no_grad()
    def update(self) -> None:
        """Take the source's present parameters into the averages."""
        found = _tensors(self.source, *self.models)
        plan = self._plan
        if plan is None or len(found) != len(plan.found) or not all(map(operator.is_, found, plan.found)):
            plan = self._plan = self._planned(found)
        averages = [list(tensors) for tensors in plan.averages] if plan.halves else plan.averages
        for k, i, name in plan.halves:
            averages[k][i] = _unrounded(self._wide[k], name, plan.averages[k][i])
        self._pairs_of(averages, plan.values).update([1.0 - rate for rate in self.rates()])
        for k, i, _ in plan.halves:
            plan.averages[k][i].copy_(averages[k][i])
        for kept, value in plan.copied:
            kept.copy_(value)
        self.updates += 1

    def _planned(self, found: list[torch.Tensor | None]) -> Plan:
        values = list(self.source.parameters())
        plan = Plan(found, [], [value for value in values if value.is_floating_point()], [], [])
        for k, model in enumerate(self.models):
            plan.averages.append([])
            for (name, average), value in zip(model.named_parameters(), values, strict=True):
                if not average.is_floating_point():
                    plan.copied.append((average, value))
                    continue
                if average.dtype in HALF:
                    plan.halves.append((k, len(plan.averages[-1]), name))
                plan.averages[-1].append(average)
            plan.copied.extend(zip(model.buffers(), self.source.buffers(), strict=True))
        return plan

    def _pairs_of(self, averages: list[list[torch.Tensor]], values: list[torch.Tensor]) -> ParameterAverages:
        """What updates these tensors: the last one, if it does."""
        last = self._pairs
        if last is None or not all(
            len(a) == len(b) and all(map(operator.is_, a, b))
            for a, b in zip((*last.averages, last.parameters), (*averages, values), strict=True)
        ):
            last = self._pairs = ParameterAverages(averages, values)
        return last

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as if never interrupted.

        {"updates", "decays", "model", "wide"}; for several decays also "others": [{"model", "wide"}, ...] of the second on.
        """
        states = [
            {"model": model.state_dict(), "wide": dict(wide)}
            for model, wide in zip(self.models, self._wide, strict=True)
        ]
        state = {"updates": self.updates, "decays": list(self.decays), **states[0]}
        return state | ({"others": states[1:]} if len(states) > 1 else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned. ValueError if that was for other decays.

        A state of one decay from before they were written down is taken to be of this one.
        """
        found = state.get("decays", self.decays[:1])
        if len(found) != len(self.decays) or ("decays" in state and tuple(found) != self.decays):
            kept = f"the decays {tuple(found)}" if "decays" in state else "one decay"
            raise ValueError(f"the state is of {kept}, this EMA has {self.decays}; make it with those to load it")
        for model, wide, part in zip(self.models, self._wide, [state, *state.get("others", [])], strict=True):
            model.load_state_dict(part["model"])
            wide.clear()
            wide.update({name: values.clone() for name, values in part.get("wide", {}).items()})
        self.updates = int(state["updates"])


class Plan(NamedTuple):
    """What an update does, found once: walking the modules by name costs more than a small network's averages do."""

    found: list[torch.Tensor | None]
    """All tensors of all models: the plan holds as long as they are these."""
    averages: list[list[torch.Tensor]]
    """For each decay, in the order of `values`."""
    values: list[torch.Tensor]
    """The source's floating parameters."""
    halves: list[tuple[int, int, str]]
    """(k, i, name) of each averages[k][i] that is a half tensor."""
    copied: list[tuple[torch.Tensor, torch.Tensor]]
    """Buffers and integer parameters, (average, value)."""


def _tensors(*models: torch.nn.Module) -> list[torch.Tensor | None]:
    """Every place of a parameter or buffer in the models, whatever its name; None where it is empty."""
    found: list[torch.Tensor | None] = []
    modules: list[torch.nn.Module | None] = list(models)
    while modules:
        if (module := modules.pop()) is not None:
            found += module._parameters.values()
            found += module._buffers.values()
            modules += module._modules.values()
    return found


def _unrounded(held: dict[str, torch.Tensor], name: str, average: torch.Tensor) -> torch.Tensor:
    """The float32 average of which `average` is the rounding; where it is not, `average` itself."""
    wide = held.get(name)
    if wide is None or wide.shape != average.shape:
        wide = average.float()
    else:
        wide = wide.to(average.device)
        torch.where(wide.to(average.dtype) == average, wide, average.float(), out=wide)
    held[name] = wide
    return wide

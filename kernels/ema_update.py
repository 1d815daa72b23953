"""Exponential moving averages of whole lists of tensors, such as a network's parameters, in one pass."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from halfbridge.kernels.aliasing import extent
from halfbridge.kernels.arguments import LIMITS
from halfbridge.kernels.dispatch import select
from halfbridge.kernels.traced import as_operands

Lists = Sequence[Tensor] | Sequence[Sequence[Tensor]]
Weights = float | Sequence[float] | Tensor


def ema_update(averages: Lists, parameters: Sequence[Tensor], weight: Weights) -> None:
    """average += weight (parameter - average), in place, for each tensor of two lists; weight is 1 - decay, in [0, 1].

    averages: as many tensors as parameters, of their shapes and devices, each with memory of its own (spans that meet are
    refused); or several such lists, with a list of weights: the parameters are then read once for all. Any shapes and floating
    dtypes; an average may have another dtype than its parameter, as float32 for bfloat16. Computed in float32, in float64 for
    float64 averages, from the nearer end, so that weights 0 and 1 are exact, and rounded once. A half average loses what is
    less than its rounding: with a weight below 2^-9 one in bfloat16 hardly moves.

    weight: a number; or, for a CUDA graph that replays with another, a floating tensor, () or (lists,), on the device of the
    parameters, whose value is not looked at. Triton's kernel reads it there; other backends fetch it.

    On a GPU this is one launch for each pair of dtypes (for four lists at most), after a table of addresses has been made and
    copied there: keep a `ParameterAverages` to make it once. Carries no gradient. TypeError or ValueError for bad arguments.
    """
    if not torch.compiler.is_compiling():
        ParameterAverages(averages, parameters).update(weight)
        return
    lists = nested(averages)
    weights = check_weights(weight, len(lists), several(averages))
    numbers, table = (None, weights) if isinstance(weights, Tensor) else as_operands(weights)
    ema_update_operator([t for tensors in lists for t in tensors], list(parameters), numbers, table)


class ParameterAverages:
    """Averages of a list of parameters, to be updated again and again: `ema_update` that keeps what it has found out.

    On a GPU the table of addresses is made at the first `update`, and again where a tensor has moved since (`net.to(...)`).
    That cannot happen while a CUDA graph is captured: call `update` once before. The graph reads the table at each replay: keep
    this object, and the tensors where they are, as long as the graph.
    """

    def __init__(self, averages: Lists, parameters: Sequence[Tensor]) -> None:
        self.averages, self.several, self.parameters = nested(averages), several(averages), list(parameters)
        self.tensors = [t for tensors in (*self.averages, self.parameters) for t in tensors]
        for t in self.tensors:
            if not isinstance(t, Tensor):
                raise TypeError(f"`averages` or `parameters` have a {type(t).__name__}; pass lists of torch tensors")
        self.places: Places = ()
        self.parts: list[Part] = []
        self.captured: list[Part] = []  # moved from since, while a graph may still read their tables
        self.look()

    @torch.no_grad()
    def update(self, weight: Weights) -> None:
        """average += weight (parameter - average) for all; several lists of averages take as many weights."""
        weights = check_weights(weight, len(self.averages), self.several)
        self.look()
        for part in self.parts:
            like = part.parameters[0]
            backend, run = select("ema_update", like.device.type, like.dtype, part.elements)
            run(part.averages, part.parameters, read_weights(weights, like, backend), part.kept)
            if backend == "triton":  # autograd hears of its own writes only
                increment_version([t for averages in part.averages for t in averages])

    def look(self) -> None:
        """Check the tensors and forget what was found out about them, unless they are where they were or a graph holds it."""
        now = places(self.tensors)
        if now == self.places:
            return
        for k, averages in enumerate(self.averages):
            check_pairs(averages, self.parameters, f"averages[{k}]" if self.several else "averages")
            check_dtypes(averages, self.averages[0], k)
        check_apart([t for averages in self.averages for t in averages], self.parameters)
        devices = dict.fromkeys(p.device for p in self.parameters)
        self.captured += [part for part in self.parts if part.kept.get("captured")]
        self.places, self.parts = now, [part_on(device, self.averages, self.parameters) for device in devices]


Places = tuple[list[Any], ...]


def places(tensors: list[Tensor]) -> Places:
    """Where the tensors are, and how they lie there: 0.3 us for each."""
    pointers, strides = list(map(Tensor.data_ptr, tensors)), list(map(Tensor.stride, tensors))
    return pointers, strides, [t.dtype for t in tensors], [t.shape for t in tensors]


class Part(NamedTuple):
    """The tensors on one device; kept: what the backend wants to find again at the next update."""

    averages: list[list[Tensor]]
    parameters: list[Tensor]
    elements: int
    kept: dict[str, Any]


def part_on(device: torch.device, averages: list[list[Tensor]], parameters: list[Tensor]) -> Part:
    here = [i for i, p in enumerate(parameters) if p.device == device]
    mine = [parameters[i] for i in here]
    return Part([[tensors[i] for i in here] for tensors in averages], mine, sum(p.numel() for p in mine), {})


def several(averages: Any) -> bool:
    """Whether these are lists of averages instead of averages."""
    return len(averages) > 0 and not isinstance(averages[0], Tensor)


def nested(averages: Any) -> list[list[Tensor]]:
    """The lists of averages, also where there is one."""
    if isinstance(averages, Tensor):
        raise TypeError("`averages` is one tensor; pass a list of tensors, [average] for a single one")
    return [list(tensors) for tensors in averages] if several(averages) else [list(averages)]


def check_pairs(averages: list[Tensor], parameters: list[Tensor], name: str) -> None:
    """Refuse lists that differ in length, shape or device, or have what cannot be averaged."""
    if len(averages) != len(parameters):
        raise ValueError(
            f"`{name}` has {len(averages)} tensors but `parameters` has {len(parameters)}; pass one for each"
        )
    for i, (average, parameter) in enumerate(zip(averages, parameters, strict=True)):
        for what, tensor in ((f"{name}[{i}]", average), (f"parameters[{i}]", parameter)):
            if tensor.dtype not in LIMITS:
                raise ValueError(f"`{what}` has dtype {tensor.dtype}, which has no averages; copy it instead")
        if average.shape != parameter.shape or average.device != parameter.device:
            raise ValueError(
                f"`{name}[{i}]` has shape {tuple(average.shape)} on {average.device} but `parameters[{i}]` has "
                f"{tuple(parameter.shape)} on {parameter.device}; they must agree"
            )
        if any(size > 1 and stride == 0 for size, stride in zip(average.shape, average.stride(), strict=True)):
            raise ValueError(
                f"`{name}[{i}]` of shape {tuple(average.shape)} repeats one element; pass a contiguous copy"
            )


def check_dtypes(averages: list[Tensor], others: list[Tensor], k: int) -> None:
    """Refuse two lists whose averages of one parameter differ in dtype."""
    for i, (average, other) in enumerate(zip(averages, others, strict=True)):
        if average.dtype != other.dtype:
            raise ValueError(
                f"`averages[{k}][{i}]` has dtype {average.dtype} but `averages[0][{i}]` has {other.dtype}; convert one of them"
            )


def check_apart(averages: list[Tensor], parameters: list[Tensor]) -> None:
    """Refuse an average whose span of memory meets that of another average or of a parameter; parameters may share theirs."""
    named = [(p, f"parameter {i}", False) for i, p in enumerate(parameters)]
    named += [(a, f"average {i} of {len(averages)}", True) for i, a in enumerate(averages)]
    spans = [
        (str(t.device), *extent(t), name, own) for t, name, own in named if t.numel() > 0 and t.device.type != "meta"
    ]
    last: dict[
        tuple[str, bool], tuple[int, str]
    ] = {}  # (device, is it an average) -> the furthest end so far, and whose
    for device, start, end, name, own in sorted(spans):
        for averaged in (True, False) if own else (True,):
            furthest, other = last.get((device, averaged), (0, ""))
            if start < furthest:
                name, other = (name, other) if own else (other, name)
                raise ValueError(f"{name} shares its memory with {other.partition(' of')[0]}; clone it")
        if end > last.get((device, own), (0, ""))[0]:
            last[device, own] = end, name


def check_weights(weight: Any, count: int, several: bool) -> list[float] | Tensor:
    """The weights of the lists as numbers, or as a tensor (lists,)."""
    if isinstance(weight, Tensor):
        wanted = (count,) if several else ()
        if tuple(weight.shape) != wanted or not weight.is_floating_point():
            raise ValueError(
                f"`weight` has shape {tuple(weight.shape)} and dtype {weight.dtype}; pass {wanted} and a floating dtype"
            )
        return weight.detach().reshape(-1)
    if not several:
        return [check_weight("weight", weight)]
    if isinstance(weight, Real) or len(weight) != count:
        raise ValueError(f"`weight` = {weight!r} for {count} lists of averages; pass a list of {count} numbers")
    return [check_weight(f"weight[{k}]", w) for k, w in enumerate(weight)]


def check_weight(name: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"`{name}` is a {type(value).__name__}; pass a Python float")
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(
            f"`{name}` = {number} is not in [0, 1]; pass 1 - decay, 0.001 for an average over 1000 updates"
        )
    return number


def read_weights(weights: list[float] | Tensor, like: Tensor, backend: str) -> list[float] | Tensor:
    """The weights as that backend takes them."""
    if not isinstance(weights, Tensor) or (backend == "triton" and weights.device == like.device):
        return weights
    return [check_weight("weight", w) for w in weights.tolist()]


def ema_update_reference(
    averages: list[list[Tensor]], parameters: list[Tensor], weights: list[float], kept: dict[str, Any] | None = None
) -> None:
    """`ema_update` without its checks, in eager torch; it keeps nothing."""
    for tensors, weight in zip(averages, weights, strict=True):
        pairs = list(zip(tensors, parameters, strict=True))
        alike = [(a, p) for a, p in pairs if a.dtype == p.dtype]
        if alike:
            torch._foreach_lerp_([a for a, _ in alike], [p for _, p in alike], weight)
        for a, p in pairs:
            if a.dtype in (torch.float32, torch.float64) and a.dtype != p.dtype:
                a.lerp_(p.to(a.dtype), weight)
            elif a.dtype != p.dtype:
                a.copy_(a.float().lerp_(p.float(), weight))


@torch.library.custom_op("halfbridge::ema_update", mutates_args=("averages",))
def ema_update_operator(
    averages: list[Tensor], parameters: list[Tensor], weights: list[float] | None, table: Tensor | None
) -> None:
    """averages: those of all lists in one, list after list; weights in `table`, if given."""
    n, given = len(parameters), cast(Weights, weights if table is None else table)
    if n > 0:
        lists = [averages[k : k + n] for k in range(0, len(averages), n)]
        ParameterAverages(lists, parameters).update(given)


@ema_update_operator.register_fake
def _(averages: list[Tensor], parameters: list[Tensor], weights: list[float] | None, table: Tensor | None) -> None:
    return None

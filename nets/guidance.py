"""Class-conditional networks: the classes of a batch, and classifier-free guidance."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch

from halfbridge.kernels import combine
from halfbridge.solvers.field import FieldOutputError

__all__ = ["NO_CLASS", "guided"]

NO_CLASS = -1
"""The class of a sample without one: the "null" class of classifier-free guidance."""


def guided(
    net: Callable[..., Any], classes: int | torch.Tensor | None, guidance: float = 0.0
) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """The network net(x, label) of a class-conditional one, with classifier-free guidance (Ho and Salimans 2022, eq. 6):

        (1 + w) net(x, label, classes) - w net(x, label, -1),   w = `guidance`

    (many codes call 1 + w the scale). It is linear in the prediction with weights that sum to 1, so it is the same rule
    for noise, score, data and velocity. w = 0 is one plain call; any other w is one call of 2 n rows, first the n with
    their classes, then the same n without, combined in float32 or better and rounded once. w = -1 is the network
    without classes.

    net: called as net(x, label, classes) with classes a (batch,) int64 tensor on x's device, -1 for none. Where it has an
    integer attribute `classes`, the number of classes that it was built with, classes are checked against that.
    classes: an int for all, or an integer tensor (batch,) whose rows are the rows of x: the rows first .. first + n - 1
    of a larger batch need `classes[first : first + n]`. None: no class, -1 for all, where `net.classes` says that the
    network has some, else net(x, label) is called.

    Raises ValueError for classes that the network does not have, classes or guidance for a network that takes none, a guidance
    that is not finite, and, when called, for an x of another number of rows than classes; TypeError for other types.
    """
    w = check_guidance(guidance)
    count = class_count(net)
    if classes is None:
        if w != 0.0:
            raise ValueError(f"guidance = {w:g} needs classes to guide to; pass classes=, or guidance=0.0")
        if not count:
            return net
        classes = NO_CLASS
    elif count == 0 or (count is None and not _takes_classes(net)):
        raise ValueError(
            f"classes are given but the network {_name(net)} has none; leave classes out, or pass a network that is called as "
            "net(x, t, classes)"
        )
    wanted = check_classes(classes, count)

    def call(x: torch.Tensor, label: torch.Tensor) -> Any:
        mine = _rows(wanted, x)
        if w == 0.0:
            return net(x, label, mine)
        n = len(x)
        both = torch.cat([mine, torch.full_like(mine, NO_CLASS)])
        out = net(torch.cat([x, x]), torch.cat([label, label]), both)
        if not isinstance(out, torch.Tensor) or out.ndim == 0 or len(out) != 2 * n:
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
            raise FieldOutputError(
                f"the network returned {got} for the {2 * n} rows of a guided batch; return one each"
            )
        return combine([out[:n], out[n:]], [1.0 + w, -w])

    return call


def check_guidance(guidance: Any) -> float:
    if isinstance(guidance, bool) or not isinstance(guidance, numbers.Real):
        raise TypeError(f"guidance is a {type(guidance).__name__}; pass a number, 0.0 for none")
    w = float(guidance)
    if not math.isfinite(w):
        raise ValueError(f"guidance = {w} is not finite; pass w of (1 + w) conditional - w unconditional, e.g. 1.0")
    return w


def class_count(net: Any) -> int | None:
    """`net.classes`, the number of classes that the network was built with; None where it says nothing."""
    count = getattr(net, "classes", None)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def check_classes(classes: Any, count: int | None) -> int | torch.Tensor:
    """An int, or an int64 tensor (batch,), of classes that the network has."""
    if isinstance(classes, torch.Tensor):
        if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
            raise TypeError(f"classes has dtype {classes.dtype}; pass integers: classes.long()")
        if classes.ndim > 1:
            raise ValueError(
                f"classes has shape {tuple(classes.shape)}; pass one class for each sample, shape (batch,)"
            )
        found = classes.long()
        low, high = torch.stack(torch.aminmax(found)).tolist() if found.numel() else (0, 0)
        result: int | torch.Tensor = int(found) if found.ndim == 0 else found
    elif isinstance(classes, bool) or not isinstance(classes, int):
        raise TypeError(f"classes is a {type(classes).__name__}; pass an int, or an integer tensor (batch,)")
    else:
        low = high = result = classes
    for value in (low, high):
        if value < NO_CLASS or (count is not None and value >= count):
            known = "" if count is None else f" .. {count - 1}"
            raise ValueError(f"classes has the class {value}; the network has 0{known}, and -1 is no class")
    return result


def _rows(classes: int | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The classes of the rows of x, on its device."""
    if not isinstance(classes, torch.Tensor):
        return torch.full(x.shape[:1], classes, dtype=torch.int64, device=x.device)
    if len(classes) != len(x):
        raise ValueError(
            f"classes has {len(classes)} rows and x has {len(x)}; give one class for each row of x: a field for the samples "
            "first .. first + n - 1 of a batch takes classes[first : first + n]"
        )
    return classes.to(x.device)


def _takes_classes(net: Callable[..., Any]) -> bool:
    """Whether the network can be called as net(x, t, classes), as far as its signature says."""
    try:
        signature = inspect.signature(net.forward if isinstance(net, torch.nn.Module) else net)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None, None, None)
    except TypeError:
        return False
    return True


def _name(net: Any) -> str:
    return getattr(net, "__name__", type(net).__name__)

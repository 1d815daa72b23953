"""What can be trained: checks of a network, its data and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import NamedTuple

import torch

from halfbridge.training.data import Dataset, check_examples
from halfbridge.training.settings import Settings
from halfbridge.training.workers import Workers

__all__ = ["Examples", "check", "check_kept", "check_network", "class_count"]


class Examples(NamedTuple):
    """What is trained on."""

    values: torch.Tensor
    """(n, *shape), in the network's dtype, where they were."""
    classes: torch.Tensor | None
    """(n,), on the CPU, if the network takes them."""
    bins: Dataset | None
    """The data set, if its pixels are dequantised anew for each example seen."""


def check(
    net: torch.nn.Module,
    data: torch.Tensor | Dataset,
    classes: torch.Tensor | None,
    settings: Settings,
    workers: Workers,
) -> Examples:
    """Refuse what cannot be trained."""
    if not isinstance(data, (torch.Tensor, Dataset)):
        raise TypeError(
            f"data is a {type(data).__name__}; pass a tensor (n, *shape), e.g. torch.as_tensor of an array, or a Dataset, which "
            "halfbridge.training.data.load makes of a name"
        )
    parameter = check_network(net, settings, workers)
    has = class_count(net)
    if isinstance(data, Dataset):
        classes = data.classes if classes is None and has else classes
        examples = data.examples.to(parameter.dtype)
    else:
        examples = data
        check_examples(examples)
        if examples.dtype != parameter.dtype:
            raise ValueError(f"data has dtype {examples.dtype} and the network {parameter.dtype}; convert one")
    if examples.device not in (parameter.device, torch.device("cpu")):
        raise ValueError(
            f"data is on {examples.device} and the network on {parameter.device}; move it there, or to the CPU, from where the "
            "rows of each batch go over"
        )
    bins = data if isinstance(data, Dataset) and data.anew else None
    return Examples(examples, _check_classes(classes, has, len(examples), settings), bins)


def check_network(
    net: torch.nn.Module, settings: Settings, workers: Workers, name: str = "the network"
) -> torch.nn.Parameter:
    """Refuse a network that cannot be trained, called `name`; else its first parameter that is."""
    parameter = next((p for p in net.parameters() if p.requires_grad), None)
    if parameter is None:
        raise ValueError(
            f"{name}, a {type(net).__name__}, has no parameter that requires a gradient: nothing to train; pass "
            "net.requires_grad_()"
        )
    workers.check_device(parameter.device, name)
    if parameter.dtype == torch.float16:
        raise ValueError(
            f"{name} is float16, where Adam's epsilon of 1e-8 is 0; pass net.float(), with precision='float16' on a GPU, or "
            "net.bfloat16()"
        )
    if workers.count > 1:
        _check_statistics(net, name)
    if settings.precision != "float32":
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"precision = {settings.precision!r} keeps float32 weights and {name} is {parameter.dtype}; pass "
                "net.float(), or precision='float32', which means the network's own"
            )
        if settings.precision == "float16" and parameter.device.type != "cuda":
            raise ValueError(
                f"precision = 'float16' needs a CUDA GPU and {name} is on {parameter.device}; pass precision='bfloat16'"
            )
    return parameter


def class_count(net: torch.nn.Module) -> int | None:
    """How many classes the network says that it knows; None for one that does not say."""
    known = getattr(net, "classes", None)
    return int(known) if isinstance(known, Integral) else None


def check_kept(named: Mapping[str, object]) -> None:
    """ValueError for modules, by what they are called, with a state that a run's folder does not keep."""
    for what, module in named.items():
        for name, part in module.named_modules() if isinstance(module, torch.nn.Module) else ():
            if type(part).get_extra_state is not torch.nn.Module.get_extra_state:
                raise ValueError(
                    f"{what} has a state beside its tensors, of {name or 'itself'} ({type(part).__name__}.get_extra_state), "
                    "which a run's folder does not keep; hold it in a buffer (register_buffer), or train without out="
                )


def _check_statistics(net: torch.nn.Module, name: str) -> None:
    """ValueError for BatchNorm: each process would have running statistics of its own rows."""
    for place, part in net.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and not isinstance(part, torch.nn.SyncBatchNorm):
            raise ValueError(
                f"{name} cannot be trained by several processes: {place or 'it'} is a {type(part).__name__}, whose statistics "
                "each would take of its own rows; use torch.nn.GroupNorm, on GPUs "
                "torch.nn.SyncBatchNorm.convert_sync_batchnorm(net), or one process"
            )


def _check_classes(classes: torch.Tensor | None, has: int | None, n: int, settings: Settings) -> torch.Tensor | None:
    if classes is None:
        if has:
            raise ValueError(
                f"the network has {has} classes and none are given; pass classes=, one for each row of data (-1: none)"
            )
        if settings.class_dropout:
            raise ValueError(
                f"class_dropout = {settings.class_dropout}, but the network is told no classes; tell it them, or leave it out"
            )
        return None
    if not isinstance(classes, torch.Tensor) or classes.shape != (n,) or classes.dtype != torch.int64:
        got = (
            f"{tuple(classes.shape)}, {classes.dtype}" if isinstance(classes, torch.Tensor) else type(classes).__name__
        )
        raise ValueError(f"classes is {got}; pass an int64 tensor of shape ({n},), one class for each row of data")
    low, high = (int(end) for end in classes.aminmax())
    if has == 0:
        raise ValueError(
            f"classes are given, but the network has none; build it with classes={high + 1}, or pass data.examples alone"
        )
    if low < -1 or (has and high >= has):
        raise ValueError(
            f"classes hold {low if low < -1 else high}; the network has 0 .. {has - 1}, and -1 means no class"
            if has
            else f"classes hold {low}; number them from 0, -1 meaning no class"
        )
    return classes.cpu()

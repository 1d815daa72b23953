"""What can be trained: checks of a network, its data and their classes."""

from __future__ import annotations

import torch

from halfbridge.training.data import Dataset, check_examples
from halfbridge.training.settings import Settings
from halfbridge.training.workers import Workers

__all__ = ["check"]


def check(
    net: torch.nn.Module,
    data: torch.Tensor | Dataset,
    classes: torch.Tensor | None,
    settings: Settings,
    workers: Workers,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Refuse what cannot be trained; the examples, and their classes if the network takes them."""
    trained = [p for p in net.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(net).__name__} has no parameter that requires a gradient: nothing to train")
    parameter = trained[0]
    workers.check_device(parameter.device, "the network")
    if settings.precision != "float32":
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"precision = {settings.precision!r} keeps float32 weights and the network is {parameter.dtype}; pass "
                "net.float(), or precision='float32', which means the network's own"
            )
        if settings.precision == "float16" and parameter.device.type != "cuda":
            raise ValueError(
                f"precision = 'float16' needs a CUDA GPU and the network is on {parameter.device}; pass precision='bfloat16'"
            )
    has = int(getattr(net, "classes", 0) or 0)
    if isinstance(data, Dataset):
        classes = data.classes if classes is None and has else classes
        examples = data.examples.to(parameter)
    else:
        examples = data
        check_examples(examples)
    for name in ("dtype", "device"):
        if getattr(examples, name) != getattr(parameter, name):
            raise ValueError(
                f"data has {name} {getattr(examples, name)} and the network {getattr(parameter, name)}; convert one"
            )
    return examples, _check_classes(net, classes, has, len(examples), settings)


def _check_classes(
    net: torch.nn.Module, classes: torch.Tensor | None, has: int, n: int, settings: Settings
) -> torch.Tensor | None:
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
    if hasattr(net, "classes") and not has:
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

"""What a network does beside its arguments: its train or eval mode, the generators that dropout draws from, compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seed_modules", "training_mode", "uncompiled"]


def uncompiled(net: torch.nn.Module) -> torch.nn.Module:
    """The network that torch.compile was given, of what it returned; another one as it is."""
    inside = getattr(net, "_orig_mod", net)
    return inside if isinstance(inside, torch.nn.Module) else net


def seed_modules(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of `device`. (torch.manual_seed seeds those of all devices, and formats a traceback
    for each kind of device that is not in use.)"""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def training_mode(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Train mode inside; every module's mode and the generators as before outside."""
    modes = {module: module.training for module in model.modules()}
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng(devices=[] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        model.train()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

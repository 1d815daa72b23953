"""Where a command computes, and what it says."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch

from halfbridge.parser import count, numbers, switch
from halfbridge.training.workers import Workers

__all__ = ["add_machine", "add_showing", "bar", "device_of", "quietly", "use_threads"]


def add_machine(group: argparse._ActionsContainer) -> None:
    """--device and --threads."""
    group.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (default: auto: a CUDA GPU if there is one)",
    )
    group.add_argument(
        "--threads", type=_threads, metavar="N", help="CPU threads of each process (default: torch's choice)"
    )


def add_showing(group: argparse._ActionsContainer) -> None:
    """--range, the machine, --progress and --quiet: what commands that make samples end with."""
    group.add_argument(
        "--range",
        type=numbers,
        default="-1,1",
        metavar="X,X",
        help="values of an image that are black and white in a .png",
    )
    add_machine(group)
    switch(group, "--progress", "show a bar of samples (default: on a terminal)", None)
    switch(group, "--quiet", "print errors only")


def _threads(text: str) -> int:
    found, most = count(text), 4 * (os.cpu_count() or 1)  # some thousands end the process
    if found > most:
        raise argparse.ArgumentTypeError(f"{text} must be at most {most} here, 4 for each CPU")
    return found


def use_threads(threads: int | None) -> None:
    """Bits on a CPU may depend on the number of threads."""
    if threads is not None:
        torch.set_num_threads(threads)


def device_of(name: str, workers: Workers) -> torch.device:
    """The device; each of several processes has its own."""
    if name == "auto":
        return workers.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError("--device meta holds no numbers; pass cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def bar(total: int, shown: bool, what: str = "sampling", unit: str = "sample") -> Any:
    """tqdm's."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, unit=unit, disable=not shown)


def quietly(quiet: bool) -> Callable[[str], None]:
    """print, or nothing."""
    return (lambda text: None) if quiet else (lambda text: print(text, flush=True))

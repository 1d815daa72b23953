"""The processes of one training or sampling run: one by default, several under `accelerate launch` or torchrun.

    accelerate launch --num_processes 4 -m halfbridge train ...                on 4 GPUs
    accelerate launch --multi_gpu --num_processes 2 -m halfbridge train ...    on CPUs: its name for several workers here
With GPUs that are not to be used set ACCELERATE_USE_CPU=true. (`accelerate launch --cpu --num_processes 2` starts one process,
as it leaves CPUs to MPI.)

Each process runs the same program and is told its index by the launcher. Nothing here is random or adds in an order that
depends on timing, but the sum over two processes rounds otherwise than the sum in one.

A process that fails alone leaves the others waiting in their next exchange: `accelerate launch` then ends them. What can go
wrong in training is decided together (the loss, the gradient's norm and signals are exchanged before they are looked at), and
what only process 0 does runs in `Workers.once`, which fails in all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from halfbridge.training import jsontext

__all__ = ["ALONE", "FirstFailed", "Workers", "current", "finite_in_all"]

T = TypeVar("T")


class FirstFailed(RuntimeError):
    """Process 0 failed in what it does for all, and says why."""


class Workers:
    """One process, which needs nobody: index 0 of count 1."""

    index: int = 0
    count: int = 1
    device: torch.device | None = None
    """Where this process's tensors must be, None for anywhere."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def add(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by its sum over the processes."""

    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace the tensors by those of process 0."""

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all processes, in their order; all have one shape and dtype."""
        return [tensor]

    def tell(self, value: T) -> T:
        """Process 0's `value`, JSON values, in all of them."""
        return value

    def once(self, act: Callable[[], T]) -> T | None:
        """`act()` on process 0, None on the others, which wait for it. Where it raises, the others raise FirstFailed."""
        return act()

    def check_device(self, device: torch.device, name: str) -> None:
        """ValueError unless tensors of that device can be exchanged."""


class Several(Workers):
    """Processes that accelerate has started, exchanging tensors through torch.distributed."""

    def __init__(self) -> None:
        try:
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env
        except ImportError as error:
            raise ImportError(
                f"WORLD_SIZE = {os.environ.get('WORLD_SIZE')} asks for several processes, which need Hugging Face accelerate: "
                "pip install 'halfbridge[distributed]'"
            ) from error
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
        if str(state.num_processes) != os.environ.get("WORLD_SIZE"):
            raise RuntimeError(
                f"WORLD_SIZE = {os.environ.get('WORLD_SIZE')}, but accelerate was set up for {state.num_processes} before; make "
                "no PartialState or Accelerator of your own before this, or make it with the same processes"
            )
        self.index, self.count = int(state.process_index), int(state.num_processes)
        self.device = torch.device("cpu") if state.device.type == "cpu" else state.device  # accelerate says cpu:0

    def add(self, tensor: torch.Tensor) -> None:
        torch.distributed.all_reduce(tensor)

    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            torch.distributed.broadcast(whole, 0)
            with torch.no_grad():
                tensor.copy_(whole)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        mine = tensor.contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        as_bytes = [part.view(torch.uint8) if part.numel() and part.ndim else part for part in (mine, *parts)]
        torch.distributed.all_gather(as_bytes[1:], as_bytes[0])
        return parts

    def tell(self, value: T) -> T:
        data = list(jsontext.dumps(value).encode()) if self.first else []
        size = torch.tensor(len(data), device=self.device)
        self.spread([size])
        text = torch.tensor(data or [0] * int(size), dtype=torch.uint8, device=self.device)
        self.spread([text])
        told: T = jsontext.loads(bytes(text.tolist()))
        return told

    def once(self, act: Callable[[], T]) -> T | None:
        failed = torch.zeros(1, device=self.device)
        result = error = None
        if self.first:
            try:
                result = act()
            except BaseException as raised:
                error = raised
                failed += 1
        torch.distributed.broadcast(failed, 0)
        if error is not None:
            raise error
        if failed.item():
            raise FirstFailed("process 0 failed; its message says why")
        return result

    def check_device(self, device: torch.device, name: str) -> None:
        assert self.device is not None
        if device.type != self.device.type or device.index not in (None, self.device.index):
            raise ValueError(
                f"{name} is on {device} and process {self.index} of {self.count} exchanges tensors on {self.device}; move "
                f"{name} there (halfbridge.training.workers.current().device), or set ACCELERATE_USE_CPU=true"
            )


ALONE = Workers()


def current() -> Workers:
    """The processes that this one was launched with: those of `accelerate launch` (or torchrun), else this one alone.

    ImportError, naming the extra, where several were launched and accelerate is not installed.
    """
    try:
        launched = int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise ValueError(f"WORLD_SIZE = {os.environ['WORLD_SIZE']!r} is no number of processes; unset it") from None
    return Several() if launched > 1 else ALONE


def finite_in_all(workers: Workers, share: Callable[[], T], whole: Callable[[], T]) -> T:
    """share(), a part of the work in each process. Where one of them raises FloatingPointError all do whole(), the work of all of
    them, so that all raise what one process would."""
    failed, made = torch.zeros(1, device=workers.device), None
    try:
        made = share()
    except FloatingPointError:
        failed += 1
    workers.add(failed)
    if made is None or failed.item():
        whole()
        raise FloatingPointError("the numbers of another process were not finite")
    return made

"""Compiling what a launcher would launch: the real launchers, on CPU tensors, for a GPU that is not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.aot.targets import TARGETS, Target


class Launch(NamedTuple):
    """One launch: its grid, Triton's compiled kernel, and the integers and tensors of int64 that it was called with, by name."""

    kernel: str
    grid: tuple[int, ...]
    compiled: Any
    numbers: dict[str, int]
    tables: dict[str, torch.Tensor]

    @property
    def programs(self) -> int:
        total = 1
        for size in self.grid:
            total *= size
        return total


@contextmanager
def compiling(target: Target) -> Iterator[list[Launch]]:
    """Inside the block a launch compiles its kernel for `target` and is noted in the list; nothing runs, outputs stay unset.

    RuntimeError where Triton interprets kernels or is not installed.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError(
            "TRITON_INTERPRET is set, so kernels are interpreted and nothing is compiled; unset it before triton is imported"
        )
    try:
        from triton.runtime.driver import driver
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        raise RuntimeError(f"triton is not installed ({error}); `pip install triton` compiles without a GPU") from error
    done: list[Launch] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        named = dict(zip(self.arg_names, arguments, strict=False)) | options
        numbers = {name: int(value) for name, value in named.items() if isinstance(value, int)}
        tables = {name: value for name, value in named.items() if is_table(value)}
        done.append(Launch(self.fn.__name__, tuple(grid), compiled, numbers, tables))
        return compiled

    saved = dict(vars(driver))
    driver.set_active(NoDevice(target))
    JITFunction.run = compile_only
    try:
        yield done
    finally:
        JITFunction.run = run
        vars(driver).clear()
        vars(driver).update(saved)


def is_table(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.int64


class NoDevice:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target.triton()

    def get_current_device(self) -> int:
        return 1000 + TARGETS.index(self.target)  # kernels in memory are filed by device, and one device has one target

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

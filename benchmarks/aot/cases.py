"""What is compiled: the cases of every kernel, from `benchmarks/NAME.py: aot_cases()`."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.case import KERNELS

BY_DATA = ("mixture_field",)  # what they compute and load depends on the data, and much of it is loaded from a cache


class Case(NamedTuple):
    """run() calls a launcher on CPU tensors; elements of the state; the bytes that must move in device memory at least."""

    kernel: str
    label: str
    run: Callable[[], Any]
    elements: int
    minimum_bytes: int


def collected(kernels: Iterable[str] = KERNELS) -> list[Case]:
    """The cases of those kernels in their order."""
    return [
        Case(kernel, label.removeprefix(kernel).strip(), *rest)
        for kernel in kernels
        for label, *rest in importlib.import_module(f"benchmarks.{kernel}").aot_cases()
    ]

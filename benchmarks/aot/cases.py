"""What is compiled: the cases of every kernel, from `benchmarks/NAME.py: aot_cases()` or, where that has none, from here."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

KERNELS = (
    "combine", "normal", "langevin", "hutchinson_probe", "hutchinson_dot", "error_norm", "ema_update", "edm_precondition",
    "mixture_field",
)  # fmt: skip


class Case(NamedTuple):
    """run() calls a launcher on CPU tensors; elements of the state; the bytes that must move in device memory at least."""

    kernel: str
    label: str
    run: Callable[[], Any]
    elements: int
    minimum_bytes: int


def collected(kernels: Iterable[str] = KERNELS) -> tuple[list[Case], list[str]]:
    """The cases of those kernels in their order, and the names of those that have no benchmark or no cases yet."""
    cases, missing = [], []
    for kernel in kernels:
        try:
            made = getattr(importlib.import_module(f"benchmarks.{kernel}"), "aot_cases", OWN.get(kernel))
        except ModuleNotFoundError as error:
            if error.name != f"benchmarks.{kernel}":
                raise
            made = OWN.get(kernel)
        if made is None:
            missing.append(kernel)
        else:
            cases += [Case(kernel, label.removeprefix(kernel).strip(), *rest) for label, *rest in made()]
    return cases, missing


def combine_cases() -> Iterator[tuple[str, Callable[[], Any], int, int]]:
    """Every dtype with and without noise, every number of inputs, samples of 1023 (not a multiple of 4) and of 12 elements
    (many to a tile), and numbers in device memory."""
    from halfbridge.kernels.gpu.combine import combine_triton
    from halfbridge.kernels.noise import DeviceNoise, Noise

    noise = Noise(0.5, 3, 1)
    device = DeviceNoise(torch.tensor(0.5), torch.tensor([3, 1, 0]))

    def case(label: str, dtype: torch.dtype, count: int, noise: Any = None, shape: tuple[int, int] = (256, 4096),
             memory: bool = False) -> tuple[str, Callable[[], Any], int, int]:  # fmt: skip
        vectors, out = [torch.empty(shape, dtype=dtype) for _ in range(count)], torch.empty(shape, dtype=dtype)
        numbers = torch.full((count,), 0.5, dtype=torch.float64) if memory else [0.5] * count
        moved = (count + 1) * out.numel() * out.element_size()
        label = f"{str(dtype)[6:]}, {count} input{'s' * (count > 1)}{label}"
        return label, partial(combine_triton, vectors, numbers, noise, out), out.numel(), moved

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        yield case("", dtype, 2)
        yield case(", noise", dtype, 2, noise)
    for count in (1, 3, 4, 5, 6):
        yield case("", torch.float32, count)
        yield case(", noise", torch.float32, count, noise)
    yield case(", noise, numbers in memory", torch.float32, 2, device, memory=True)
    yield case(", noise, samples of 1023", torch.float32, 2, noise, (1024, 1023))
    yield case(", noise, samples of 12", torch.float32, 2, noise, (65536, 12))


def normal_cases() -> Iterator[tuple[str, Callable[[], Any], int, int]]:
    from halfbridge.kernels.gpu.normal import fill_triton

    for dtype, size in ((torch.float32, 4096), (torch.float64, 4096), (torch.float32, 1023)):
        out = torch.empty(1, 256, size, dtype=dtype)
        label = f"{str(dtype)[6:]}" + (f", samples of {size}" if size % 4 else "")
        yield label, partial(fill_triton, out, 3, [1], 0, 0), out.numel(), out.numel() * out.element_size()


OWN: dict[str, Callable[[], Iterator[tuple[str, Callable[[], Any], int, int]]]] = {
    "combine": combine_cases, "normal": normal_cases,
}  # fmt: skip

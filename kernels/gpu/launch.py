"""Launching a kernel: the tensor's device, options that must not be left to a version's default, numbers as bits."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers that change from step to step: a kernel that were specialized for them would be compiled again in mid-run
NOISE = ["scale_bits", "seed", "draw", "first", "scale", "counter"]
COEFFICIENTS = ["b0", "b1", "b2", "b3", "b4", "b5", "table"]
DRAWS = 1 << 15  # of one launch: the grid's second axis ends at 2^16 - 1


def launch(kernel: Any, tiles: int | tuple[int, ...], like: Tensor, *arguments: Any, **constants: Any) -> None:
    """kernel over a grid of `tiles` programs, on the device and current stream of `like`; nothing where there are none.

    Fusing a multiplication and an addition is asked for: the instruction counts that keep noisy updates memory-bound
    depend on it, and Triton's default changes.
    """
    grid = (tiles,) if isinstance(tiles, int) else tiles
    if 0 in grid:
        return
    constants.setdefault("num_warps", 4)
    if like.is_cuda and torch.cuda.current_device() != like.device.index:
        with torch.cuda.device(like.device):
            kernel[grid](*arguments, enable_fp_fusion=True, **constants)
    else:
        kernel[grid](*arguments, enable_fp_fusion=True, **constants)


def triton_dtype(dtype: torch.dtype) -> Any:
    """The accumulation dtype as kernels take it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def bits(numbers: Sequence[float], dtype: torch.dtype) -> tuple[int, ...]:
    """The numbers in the accumulation dtype of `dtype` as int64 bit patterns, which `coefficient` reads in a kernel.

    A Python float would arrive there as a float32, and with one kernel a type.
    """
    if dtype == torch.float64:
        return struct.unpack(f"{len(numbers)}q", struct.pack(f"{len(numbers)}d", *numbers))
    return struct.unpack(f"{len(numbers)}I", struct.pack(f"{len(numbers)}f", *numbers))


@triton.jit
def coefficient(pattern, table, j: tl.constexpr, DTYPE: tl.constexpr):
    """Number j of a table in memory, or, where `table` is None, the number with those bits."""
    if table is not None:
        return tl.load(table + j).to(DTYPE)
    elif DTYPE == tl.float64:
        return pattern.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        return pattern.to(tl.int32).to(tl.float32, bitcast=True)


def runs(draws: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the stretches of draws that follow on each other, each short enough for one launch."""
    begin = 0
    for end in range(1, len(draws) + 1):
        if end == len(draws) or draws[end] != draws[end - 1] + 1 or end - begin == DRAWS:
            yield begin, end
            begin = end

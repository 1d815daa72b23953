"""`ema_update` on a GPU: one launch for all tensors of a pair of dtypes, whatever their number and shapes.

A table in device memory has a row for each tile: how many elements it has, and where its parameter and its averages begin.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbridge.kernels.aliasing import in_one_order
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.ema_update import ema_update_reference
from halfbridge.kernels.gpu.launch import bits, coefficient, launch, triton_dtype

BLOCK = 1024  # elements of a tile: 8 a thread; twice as many of 16 bits
LISTS = 4  # of averages, in one launch
TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def interpolate(average, parameter, weight):
    """average + weight (parameter - average), from the nearer end: exact for the weights 0 and 1."""
    near = weight < 0.5
    return tl.where(near, average, parameter) + tl.where(near, weight, weight - 1.0) * (parameter - average)


@triton.jit
def blend(
    row, begin, w0, w1, w2, w3, weights, COUNT: tl.constexpr, AVERAGE: tl.constexpr, PARAMETER: tl.constexpr,
    ALIGNED: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """WIDTH elements of a tile; the parameter is read once for all its averages."""
    index = begin + tl.max_contiguous(tl.arange(0, WIDTH), 128 // AVERAGE.primitive_bitwidth)  # as averages are written
    mask = index < tl.multiple_of(tl.load(row).to(tl.int32), ALIGNED)
    parameter = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(PARAMETER)), ALIGNED)
    p = tl.load(parameter + index, mask=mask).to(DTYPE)
    for k in tl.static_range(COUNT):
        average = tl.multiple_of(tl.load(row + 2 + k).to(tl.pointer_type(AVERAGE)), ALIGNED)
        pattern = w0 if k == 0 else (w1 if k == 1 else (w2 if k == 2 else w3))
        weight = coefficient(pattern, weights, k, DTYPE)
        result = interpolate(tl.load(average + index, mask=mask).to(DTYPE), p, weight)
        tl.store(average + index, result.to(AVERAGE), mask=mask)


@triton.jit(do_not_specialize=["w0", "w1", "w2", "w3", "weights"])
def ema_kernel(
    table, w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, weights,
    COUNT: tl.constexpr, AVERAGE: tl.constexpr, PARAMETER: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A row of the table is (elements, address of the parameter, addresses of its averages)."""
    row = table + tl.program_id(0).to(tl.int64) * (COUNT + 2)
    size = tl.load(row).to(tl.int32)
    every = size | tl.load(row + 1)
    for k in tl.static_range(COUNT):
        every |= tl.load(row + 2 + k)
    if every & 15 == 0:  # what begins and ends on 16 bytes is moved by 16 bytes
        blend(row, 0, w0, w1, w2, w3, weights, COUNT, AVERAGE, PARAMETER, 16, BLOCK, DTYPE)
    else:
        for begin in range(0, size, BLOCK // 4):
            blend(row, begin, w0, w1, w2, w3, weights, COUNT, AVERAGE, PARAMETER, 1, BLOCK // 4, DTYPE)


class Group(NamedTuple):
    """The pairs of one launch: a row of `table` for each tile; `lists` lists of averages, the first of them number `first`."""

    table: Tensor
    first: int
    lists: int
    average: torch.dtype
    parameter: torch.dtype


def ema_update_triton(
    averages: list[list[Tensor]], parameters: list[Tensor], weights: Sequence[float] | Tensor, kept: dict[str, Any]
) -> None:
    """`ema_update_reference`, in a launch for each pair of dtypes and four lists; `kept` has the tables from one call to the
    next, while no tensor moves. Tensors that do not lie in one piece of memory, in one order, take the reference."""
    if "groups" not in kept:
        full = [i for i, p in enumerate(parameters) if p.numel() > 0]
        pieces = [i for i in full if in_one_order([parameters[i], *(tensors[i] for tensors in averages)])]
        kept["groups"] = groups(averages, parameters, pieces)
        kept["others"] = sorted(set(full) - set(pieces))
    kept["captured"] = kept.get("captured") or capturing(parameters[0])  # then a graph has the addresses of the tables
    for group in kept["groups"]:
        mine, inner = weights[group.first : group.first + group.lists], accumulation(group.average)
        numbers: Any = mine.to(inner).contiguous() if isinstance(mine, Tensor) else None
        patterns = (0,) * LISTS if isinstance(mine, Tensor) else (*bits(mine, inner), *(0,) * (LISTS - group.lists))
        launch(
            ema_kernel, len(group.table), group.table, group.table, *patterns, numbers,
            COUNT=group.lists, AVERAGE=TYPES[group.average], PARAMETER=TYPES[group.parameter],
            BLOCK=block(group.average, group.parameter), DTYPE=triton_dtype(inner),
        )  # fmt: skip
    if kept["others"]:
        rest = [[tensors[i] for i in kept["others"]] for tensors in averages]
        known = weights.tolist() if isinstance(weights, Tensor) else list(weights)
        ema_update_reference(rest, [parameters[i] for i in kept["others"]], known)


def capturing(like: Tensor) -> bool:
    """Whether launches on that tensor's device go into a CUDA graph."""
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


def block(*dtypes: torch.dtype) -> int:
    """Elements of a tile."""
    return 2 * BLOCK if min(dtype.itemsize for dtype in dtypes) == 2 else BLOCK


def groups(averages: list[list[Tensor]], parameters: list[Tensor], pieces: list[int]) -> list[Group]:
    """The launches for those places in the lists."""
    kinds: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    for i in pieces:
        kinds.setdefault((averages[0][i].dtype, parameters[i].dtype), []).append(i)
    found = []
    for (average, parameter), members in kinds.items():
        for first in range(0, len(averages), LISTS):
            lists = [parameters, *averages[first : first + LISTS]]
            rows = table([[tensors[i] for i in members] for tensors in lists], block(average, parameter))
            found.append(Group(rows, first, len(lists) - 1, average, parameter))
    return found


def table(lists: list[list[Tensor]], block: int) -> Tensor:
    """(elements, address in each list) of each tile of up to `block` elements, in the memory of the tensors' device."""
    like = lists[0][0]
    if capturing(like):
        raise RuntimeError(
            "the table of addresses for `ema_update` cannot be made while a CUDA graph is captured; keep a ParameterAverages "
            "and call its update once before the capture"
        )
    sizes = np.array([t.numel() for t in lists[0]], dtype=np.int64)
    tiles = -(-sizes // block)
    owner = np.repeat(np.arange(len(sizes)), tiles)
    start = (np.arange(len(owner)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * block  # of the tile in its tensor
    columns = [np.minimum(sizes[owner] - start, block)]
    for tensors in lists:
        addresses = np.array([t.data_ptr() for t in tensors], dtype=np.int64)
        columns.append(addresses[owner] + start * tensors[0].itemsize)
    return torch.from_numpy(np.stack(columns, axis=1)).to(like.device)

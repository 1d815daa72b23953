"""States as they come: dtypes, shapes around the edges of a tile, memory that is shifted, strided, transposed or repeated."""

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = ["plain", "shifted", "strided", "transposed", "repeated"]


def shapes(*sizes: int) -> st.SearchStrategy[tuple[int, ...]]:
    """(batch, *sample): small ones of 1 to 3 axes, empty ones too, and samples of exactly `sizes` elements."""
    small = st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple)
    return small | st.tuples(st.integers(1, 3), st.sampled_from(sizes))


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The numbers of t in another place: one element off alignment, every second element, last axis first, or (and then only
    the first sample's) a single sample that all indices of the batch name."""
    if layout == "shifted":
        return torch.cat([t.new_full((1,), torch.nan), t.reshape(-1)])[1:].view(t.shape)
    if layout == "strided":
        wide = t.new_full((*t.shape, 2), torch.nan)
        wide[..., 1] = t
        return wide[..., 1]
    if layout == "transposed":
        axes = tuple(reversed(range(t.dim())))
        return t.permute(axes).contiguous().permute(axes)
    if layout == "repeated" and len(t):
        return t[:1].expand(t.shape)
    return t


def inner_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32

"""Discrete data seen as continuous, and log-densities in bits per dimension of the discrete data."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch

from halfbridge.kernels.philox import check_first, check_seed, sample_words, words
from halfbridge.solvers.draws import DEQUANTISE

__all__ = ["bits_per_dim", "dequantise"]

ROWS = 1 << 18  # elements at once: a dozen int64 vectors of 2 MiB


def dequantise(
    images: torch.Tensor,
    seed: int,
    first: int = 0,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """x = low + (high - low) (k + U)/levels for values k in 0 .. levels - 1, U uniform in (0, 1): each in its own bin.

    images: (batch, *shape) of an integer dtype, e.g. uint8. Returns the same shape in `dtype`; computed in float64, then
    rounded, so that in float32 about one value in 10^5 lies on the edge of its bin. U depends on (seed, global index, place
    in the sample) only; first is the global index of images[0]. With x the log-density of a model bounds its discrete
    log-likelihood from below, E log p(x) + d log((high - low)/levels) <= log P(k): see `bits_per_dim`. Theis et al. 2016.
    TypeError or ValueError for images that are not integers in range.
    """
    levels, low, high = _check_levels(levels, low, high)
    if not isinstance(images, torch.Tensor) or images.is_floating_point() or images.is_complex():
        got = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of an integer dtype, got {got}; pass the pixels before any scaling")
    if images.dtype == torch.bool or images.ndim < 1:
        raise ValueError(
            f"images has shape {tuple(images.shape)} and dtype {images.dtype}; pass integers, (batch, *shape)"
        )
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype = {dtype!r} must be a floating-point torch dtype")
    seed, first = check_seed(seed), check_first(first, len(images))
    if images.numel() == 0:
        return images.to(dtype)
    smallest, largest = (int(end) for end in torch.aminmax(images))
    if smallest < 0 or largest >= levels:
        raise ValueError(
            f"images hold values from {smallest} to {largest}, but levels = {levels} has 0 to {levels - 1}"
        )
    rows = images.reshape(len(images), -1)
    out = torch.empty(rows.shape, dtype=dtype, device=images.device)
    count = max(1, ROWS // rows.shape[1])
    for top in range(0, len(rows), count):
        part = rows[top : top + count]
        value = (part + _uniform(part, seed, first + top)) / levels
        out[top : top + count] = low + (high - low) * value
    return out.view(images.shape)


def bits_per_dim(
    log_prob: torch.Tensor, dims: int, *, levels: int = 256, low: float = -1.0, high: float = 1.0
) -> torch.Tensor:
    """-log p(x)/(d ln 2) + log2(levels/(high - low)): nats of dequantised data on [low, high] in bits a dimension.

    log_prob: of any shape, such as a Likelihood's. dims: d, elements of a sample. The offset is 7 for 256 levels on
    [-1, 1] and 8 on [0, 1]. A std_error becomes std_error/(d ln 2). ValueError for bad arguments.
    """
    levels, low, high = _check_levels(levels, low, high)
    if type(dims) is not int or dims < 1:
        raise ValueError(f"dims = {dims!r} must be the number of elements of a sample, an int of at least 1")
    if not isinstance(log_prob, torch.Tensor):
        raise TypeError(f"log_prob must be a tensor of nats, got {type(log_prob).__name__}; pass likelihood.log_prob")
    return -log_prob / (dims * math.log(2.0)) + math.log2(levels / (high - low))


def _uniform(rows: torch.Tensor, seed: int, first: int) -> torch.Tensor:
    """(w + 0.5)/2^32 like `rows` (batch, n), float64: w0 .. w3 of counter j for the elements 4 j .. 4 j + 3."""
    n, device = rows.shape[1], rows.device
    block = torch.arange(-(-n // 4), device=device)[None]
    draw = torch.full((1, 1), DEQUANTISE, dtype=torch.int64, device=device)
    samples = sample_words(first, torch.arange(len(rows), device=device)[:, None])
    found = torch.stack(words(block, draw, samples, seed), dim=-1).flatten(1)[:, :n]
    return (found.double() + 0.5) / 2.0**32


def _check_levels(levels: Any, low: Any, high: Any) -> tuple[int, float, float]:
    if isinstance(levels, bool) or not isinstance(levels, Integral) or levels < 2:
        raise ValueError(f"levels = {levels!r} must be an int of at least 2, such as 256 for 8 bits")
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} = {value!r} must be a finite number")
    if not low < high:
        raise ValueError(f"low = {low!r} must be below high = {high!r}: the data lie between them")
    return int(levels), float(low), float(high)

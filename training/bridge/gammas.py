"""Step sizes gamma_1, ..., gamma_N of a chain whose kernels have the variances 2 gamma_k."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from halfbridge.solvers.reference.covariance import float64, whole_number

__all__ = ["check_gammas", "constant", "geometric", "symmetric"]


def constant(n: int, gamma: float = 1.0) -> Tensor:
    """gamma_k = gamma, (n,) float64. ValueError for n < 1 or a gamma that is not positive."""
    return check_gammas(torch.full((whole_number("n", n),), _positive("gamma", gamma), dtype=torch.float64))


def geometric(n: int, first: float, last: float) -> Tensor:
    """gamma_k = first (last/first)^((k-1)/(n-1)), (n,) float64; `first` alone where n = 1.

    Small steps at one end: at the data with first < last. ValueError for n < 1 or ends that are not positive.
    """
    n, low, high = whole_number("n", n), _positive("first", first), _positive("last", last)
    return check_gammas(_between(low, high, torch.arange(n, dtype=torch.float64) / max(n - 1, 1), "geometric"))


def symmetric(n: int, least: float, most: float, rise: str = "linear") -> Tensor:
    """gamma_k = gamma_{n+1-k}, from `least` at both ends up to `most` in the middle, (n,) float64.

    rise: "linear" (a triangle; De Bortoli et al. 2021) or "geometric". An even n reaches `most` twice, n <= 2 has nothing else.
    A bridge moves fast near both ends, which small steps there follow. ValueError for n < 1, for least and most that are not
    positive or not in this order, and for another `rise`.
    """
    n, low, high = whole_number("n", n), _positive("least", least), _positive("most", most)
    if low > high:
        raise ValueError(f"`least` = {low:g} is above `most` = {high:g}; the steps at the ends are the smaller ones")
    if rise not in ("linear", "geometric"):
        raise ValueError(f"`rise` = {rise!r} is not 'linear' or 'geometric'")
    k = torch.arange(n, dtype=torch.float64)
    peak = (n - 1) // 2
    from_end = torch.minimum(k, n - 1 - k)
    return check_gammas(_between(low, high, from_end / peak if peak else torch.ones_like(k), rise))


def check_gammas(gammas: Any) -> Tensor:
    """The step sizes as a (N,) float64 CPU tensor; ValueError unless there is at least one and all are positive."""
    values = float64("gammas", gammas)[0]
    if values.ndim != 1 or not values.numel():
        raise ValueError(
            f"`gammas` has shape {tuple(values.shape)}; pass one step size a step of the chain, (N,) with N >= 1"
        )
    wrong = (values <= 0).nonzero()
    if wrong.numel():
        k = int(wrong[0])
        raise ValueError(
            f"gammas[{k}] = {float(values[k]):g} is not positive: 2 gamma is the variance of a kernel; pass positive step sizes"
        )
    return values


def _between(low: float, high: float, u: Tensor, rise: str) -> Tensor:
    """From low at u = 0 to high at u = 1, each end exact."""
    return low * (1 - u) + high * u if rise == "linear" else low ** (1 - u) * high**u


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` = {value!r} must be a positive number: 2 gamma is the variance of a kernel")
    return float(value)

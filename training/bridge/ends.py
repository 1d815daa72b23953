"""The two laws that a bridge joins, as what can be sampled."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from halfbridge.kernels import normal
from halfbridge.solvers.draws import choice_words
from halfbridge.solvers.prior import normal_log_prob

__all__ = ["End", "Examples", "Normal", "check_ends", "check_rows"]


class End(Protocol):
    """A law on (*shape): hb.reference.Gaussian and GaussianMixture are such, and `Examples` and `Normal` here.

    One with a density may have log_prob(x) -> (batch,) in nats as well, which some estimates of KL ask for.
    """

    def sample(self, n: int, seed: int, first: int = 0) -> Tensor:
        """(n, *shape): the samples first, ..., first + n - 1, each a function of `seed` and its index alone."""


class Examples:
    """Rows of a data set (m, *shape), picked with replacement: row floor(m u), u the uniform number of (seed, sample index).

    device: where samples are given, default where the data are; the data stay where they are, and what is picked goes over.
    ValueError for data without rows, or with other than finite floating numbers.
    """

    def __init__(self, data: Tensor, device: torch.device | str | None = None) -> None:
        check_rows("data", data)
        self.data, self.device = data, data.device if device is None else torch.device(device)

    def sample(self, n: int, seed: int, first: int = 0) -> Tensor:
        high, low, *_ = choice_words(n, seed, first)
        m = len(self.data)
        # floor(m (high + low/2^32)/2^32), exact in integers for m up to 2^31
        rows = (high * m + ((low * m) >> 32)) >> 32
        return self.data[rows.to(self.data.device)].to(self.device)

    def __repr__(self) -> str:
        return f"Examples({len(self.data)} of shape {tuple(self.data.shape[1:])})"


class Normal:
    """N(mean 1, std^2 I) on states of `shape`: the prior of a bridge between data and noise. ValueError unless std > 0."""

    def __init__(
        self,
        shape: tuple[int, ...],
        std: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mean: float = 0.0,
    ) -> None:
        if not 0 < std < math.inf:
            raise ValueError(f"`std` = {std!r} must be positive")
        if not math.isfinite(mean):
            raise ValueError(f"`mean` = {mean!r} must be finite, the mean of every number of a state")
        self.shape, self.std, self.dtype, self.device = tuple(shape), float(std), dtype, torch.device(device)
        self.mean = float(mean)

    def sample(self, n: int, seed: int, first: int = 0) -> Tensor:
        z = normal((n, *self.shape), seed, 0, first, dtype=self.dtype, device=self.device)
        return z.mul_(self.std).add_(self.mean)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density in nats, (batch,) float64."""
        return normal_log_prob(x.double() - self.mean, self.std)

    def __repr__(self) -> str:
        return f"Normal({self.shape}, mean={self.mean:g}, std={self.std:g})"


def check_rows(name: str, data: Tensor) -> None:
    """ValueError for what is no data set of finite rows."""
    if not isinstance(data, Tensor) or data.ndim < 2 or not len(data) or not data.is_floating_point():
        got = f"{tuple(data.shape)}, {data.dtype}" if isinstance(data, Tensor) else f"a {type(data).__name__}"
        raise ValueError(f"`{name}` is {got}; pass a floating tensor (m, *shape), one example a row")
    bad = int((~torch.isfinite(data)).sum())
    if bad:
        raise ValueError(f"`{name}` must be finite, but {bad} of its {data.numel()} entries are NaN or infinite")


def check_ends(start: End, end: End) -> None:
    """ValueError unless samples of the two laws are alike."""
    a, b = start.sample(1, 0), end.sample(1, 0)
    for what in ("shape", "dtype", "device"):
        got, want = (getattr(x[0], what) for x in (b, a))
        if got != want:
            got, want = (tuple(got), tuple(want)) if what == "shape" else (got, want)
            raise ValueError(
                f"`end` has samples of {what} {got}, but `start` has {want}; a bridge joins laws on one space: convert one"
            )

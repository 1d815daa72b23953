"""What a chain gives out at its end: -log of the density, or of the probability of data on levels, at N(mean, tau^2 I)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Decoder", "Discretised", "gaussian_nll"]

Decoder = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(x0, mean, log_variance), all (batch, *shape) or broadcast to it, -> (batch,) nats, summed over the elements."""


def gaussian_nll(x0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """-log N(x0; mean, exp(log_variance) I), (batch,), nats."""
    square = (x0 - mean).square() * torch.exp(-log_variance)
    return 0.5 * (square + log_variance + math.log(2.0 * math.pi)).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Discretised:
    """-log of the probability that N(mean, tau^2) puts on x0's bin, for data on `levels` equally spaced values from `low` to
    `high`, each in the middle of its bin; the first and last bins reach to infinity, so that the probabilities of all
    levels sum to one. Ho et al. 2020, eq. 13 (256 levels on [-1, 1]).

    Computed in float64, from the smaller tail. ValueError for bad numbers, and when called with data off the levels.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels = {self.levels!r} must be an int of at least 2, such as 256 for 8 bits")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low = {self.low!r} must be finite and below high = {self.high!r}")

    @property
    def spacing(self) -> float:
        return (self.high - self.low) / (self.levels - 1)

    def centres(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The levels, (levels,), float64."""
        k = torch.arange(self.levels, dtype=torch.float64, device=device)
        return self.low + self.spacing * k

    def index(self, x0: torch.Tensor) -> torch.Tensor:
        """The level of each element, float64. ValueError for data off the levels by more than rounding."""
        place = (x0.double() - self.low) / self.spacing
        k = place.round()
        off = ((place - k).abs() > 0.05) | (k < 0) | (k > self.levels - 1)
        if off.any():
            raise ValueError(
                f"x0 holds {x0[off][0].item():.6g}, which is none of the {self.levels} levels from {self.low:g} to "
                f"{self.high:g}; scale integers k to low + k (high - low)/(levels - 1), without dequantising them"
            )
        return k

    def __call__(self, x0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        k = self.index(x0)
        std = torch.exp(0.5 * log_variance.double())
        centre = self.low + self.spacing * k - mean.double()
        half = 0.5 * self.spacing
        lower = torch.where(k == 0, -math.inf, (centre - half) / std)
        upper = torch.where(k == self.levels - 1, math.inf, (centre + half) / std)
        # P(lower < Z < upper), mirrored into the left tail, where log_ndtr keeps its digits
        mirror = centre > 0
        lower, upper = torch.where(mirror, -upper, lower), torch.where(mirror, -lower, upper)
        high = torch.special.log_ndtr(upper)
        low = torch.special.log_ndtr(lower)
        log_p: torch.Tensor = high + torch.log(-torch.expm1(low - high))
        return -log_p.flatten(1).sum(dim=1).to(mean.dtype)

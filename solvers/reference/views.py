"""The exact field of one Gaussian under a linear process, as coefficients; and what every exact field does with x."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from halfbridge.solvers.processes import Process

__all__ = ["AffineView", "PerDevice", "affine_view", "coefficients", "flat_rows"]


class AffineView(NamedTuple):
    """field(x) = gain (x - alpha m) + offset m = gain x + pull m, for data N(m, v) in one dimension."""

    gain: Tensor
    pull: Tensor
    offset: float


def affine_view(predicts: str, alpha: float, sigma: float, variance: Tensor) -> AffineView:
    """Coefficients of the field of data N(m, `variance`), elementwise, with S = alpha^2 variance + sigma^2.

    Each view has its own closed form, products and quotients of positive numbers except 1 - variance in the velocity:
    taking velocity = alpha noise - sigma data would leave sigma times the rounding of its two terms.
    """
    s = alpha**2 * variance + sigma**2
    match predicts:
        case "noise":
            return AffineView(sigma / s, -alpha * sigma / s, 0.0)
        case "score":
            return AffineView(-1 / s, alpha / s, 0.0)
        case "data":
            return AffineView(alpha * variance / s, sigma**2 / s, 1.0)
        case "velocity":
            return AffineView(alpha * sigma * (1 - variance) / s, -sigma * (alpha**2 + sigma**2) / s, -sigma)
    raise ValueError(f"`predicts` must be noise, score, data or velocity, got {predicts!r}")


def coefficients(process: Process, t: float) -> tuple[float, float]:
    """alpha(t), sigma(t), for a field; ValueError where sigma(t) is not positive."""
    t = float(t)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    if not sigma > 0:
        raise ValueError(
            f"the exact field was called at t = {t:.6g}, where sigma = {sigma:.6g}: score, noise and data are defined "
            f"for sigma > 0; stop at t_min = {process.t_min:.6g}, or let the solver end at 0 (it returns the data)"
        )
    return alpha, sigma


def flat_rows(x: Tensor, dim: int) -> Tensor:
    """x (batch, *shape), prod(shape) = `dim`, as float64 rows (batch, dim); ValueError otherwise."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"`x` must be a tensor of a floating dtype, got {kind}")
    if x.ndim < 1 or x[:1].numel() != min(x.shape[0], 1) * dim:
        raise ValueError(f"`x` must be (batch, *shape) with prod(shape) = {dim}, got shape {tuple(x.shape)}")
    return x.to(torch.float64).reshape(x.shape[0], dim)


class PerDevice:
    """tables(device): the tables given on the CPU, copied to each device once. Pickles and copies hold the CPU's only."""

    def __init__(self, *tables: Tensor) -> None:
        self._copies = {torch.device("cpu"): tables}

    def __call__(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._copies:
            with torch.inference_mode(False):  # a table made in inference mode could never enter a graph
                self._copies[device] = tuple(table.to(device) for table in self(torch.device("cpu")))
        return self._copies[device]

    def __reduce__(self) -> tuple[type[PerDevice], tuple[Tensor, ...]]:
        return type(self), self(torch.device("cpu"))

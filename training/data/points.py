"""Laws in the plane."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from halfbridge.solvers.reference.mixture import GaussianMixture

__all__ = [
    "Points",
    "checkerboard",
    "labelled_checkerboard",
    "labelled_moons",
    "labelled_ring",
    "moons",
    "ring",
    "swiss_roll",
]


class Points(NamedTuple):
    points: torch.Tensor
    """(n, 2)."""
    labels: torch.Tensor
    """(n,), int64: which part of the law each point comes from."""


def moons(n: int, seed: int, *, noise: float = 0.05, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """n points of two interleaved half circles of radius 1, plus N(0, noise^2 I): shape (n, 2).

    The upper moon is (cos a, sin a), the lower (1 - cos a, 1/2 - sin a), a uniform in [0, pi] and each point on either
    with probability 1/2; the whole is moved by (-1/2, -1/4), its centre.
    """
    return labelled_moons(n, seed, noise=noise, dtype=dtype).points


def labelled_moons(n: int, seed: int, *, noise: float = 0.05, dtype: torch.dtype = torch.float32) -> Points:
    """The points of `moons` with their moon, 0 for the upper and 1 for the lower."""
    generator = _generator(n, seed)
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
    upper = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu") < 0.5
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64, device="cpu")
    x = torch.where(upper, angle.cos(), 1.0 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return Points((torch.stack([x, y], dim=1) + noise * z).to(dtype), (~upper).long())


def checkerboard(n: int, seed: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """n points, uniform on the 8 black squares of a 4x4 board on [-2, 2]^2: shape (n, 2).

    The square of column i and row j, [i - 2, i - 1) x [j - 2, j - 1), is black where i + j is even. Mean 0 and covariance
    [[4/3, 1/4], [1/4, 4/3]]; the entropy is log 8 nats.
    """
    return labelled_checkerboard(n, seed, dtype=dtype).points


def labelled_checkerboard(n: int, seed: int, *, dtype: torch.dtype = torch.float32) -> Points:
    """The points of `checkerboard` with their square, 0 .. 7: 2 i + j // 2 for column i and row j.

    Places within a square are odd multiples of 2^-21, which float32 holds exactly, so that no rounding moves a point to
    the edge of its square. (bfloat16 and float16 may.)
    """
    generator = _generator(n, seed)
    square = torch.randint(8, (n,), generator=generator, device="cpu")
    inside = torch.randint(2**20, (n, 2), generator=generator, device="cpu").double() / 2.0**20 + 2.0**-21
    column = square // 2
    row = 2 * (square % 2) + column % 2
    return Points((torch.stack([column, row], dim=1) - 2 + inside).to(dtype), square)


def swiss_roll(n: int, seed: int, *, noise: float = 0.2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """n points of a spiral, a (cos a, sin a)/5 with a uniform in [3 pi/2, 9 pi/2], plus N(0, noise^2 I): shape (n, 2).

    One and a half turns, 2 pi/5 = 1.26 apart, that end at radius 2.83. The mean is (2/5, 2/(15 pi)). This is
    scikit-learn's `make_swiss_roll` (Marsland 2009) without its flat coordinate, at the scale and noise that
    generative models in the plane are compared at (Grathwohl et al. 2019, FFJORD).
    """
    generator = _generator(n, seed)
    angle = 1.5 * math.pi * (1.0 + 2.0 * torch.rand(n, generator=generator, dtype=torch.float64, device="cpu"))
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64, device="cpu")
    return ((angle / 5.0)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) + noise * z).to(dtype)


def ring(components: int = 8, *, radius: float = 2.0, std: float = 0.2) -> GaussianMixture:
    """The mixture of equal Gaussians N(m_k, std^2 I) in the plane, m_k evenly spaced on a circle of `radius`.

    It is an exact law: `.sample(n, seed)` is training data, `.field(process)` what the network should become.
    """
    if components < 1:
        raise ValueError(f"components = {components} must be at least 1")
    angle = 2.0 * math.pi * torch.arange(components, dtype=torch.float64, device="cpu") / components
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture([1.0 / components] * components, means, std**2)


def labelled_ring(n: int, seed: int, *, dtype: torch.dtype = torch.float32) -> Points:
    """n points of `ring()`, the 8 Gaussians, `ring().sample(n, seed)`, with their component k = 0 .. 7."""
    _generator(n, seed)
    law = ring()
    return Points(law.sample(n, seed).to(dtype), law.choose(n, seed))


def _generator(n: int, seed: int) -> torch.Generator:
    if n < 1:
        raise ValueError(f"n = {n} must be at least 1")
    return torch.Generator("cpu").manual_seed(seed)

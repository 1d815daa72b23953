"""Laws in the plane."""

from __future__ import annotations

import math

import torch

from halfbridge.solvers.reference.mixture import GaussianMixture

__all__ = ["moons", "ring"]


def moons(n: int, seed: int, *, noise: float = 0.05, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """n points of two interleaved half circles of radius 1, plus N(0, noise^2 I): shape (n, 2).

    The upper moon is (cos a, sin a), the lower (1 - cos a, 1/2 - sin a), a uniform in [0, pi] and each point on either
    with probability 1/2; the whole is moved by (-1/2, -1/4), its centre.
    """
    if n < 1:
        raise ValueError(f"n = {n} must be at least 1")
    generator = torch.Generator("cpu").manual_seed(seed)
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
    upper = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu") < 0.5
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64, device="cpu")
    x = torch.where(upper, angle.cos(), 1.0 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return (torch.stack([x, y], dim=1) + noise * z).to(dtype)


def ring(components: int = 8, *, radius: float = 2.0, std: float = 0.2) -> GaussianMixture:
    """The mixture of equal Gaussians N(m_k, std^2 I) in the plane, m_k evenly spaced on a circle of `radius`.

    It is an exact law: `.sample(n, seed)` is training data, `.field(process)` what the network should become.
    """
    if components < 1:
        raise ValueError(f"components = {components} must be at least 1")
    angle = 2.0 * math.pi * torch.arange(components, dtype=torch.float64, device="cpu") / components
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture([1.0 / components] * components, means, std**2)

"""Small data sets that need no download."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from halfbridge.solvers.reference.mixture import GaussianMixture

__all__ = ["Digits", "digits", "moons", "ring"]


class Digits(NamedTuple):
    images: torch.Tensor
    """(1797, 1, 8, 8), in [-1, 1]."""
    labels: torch.Tensor
    """(1797,), int64, 0 to 9."""


def digits(*, dtype: torch.dtype = torch.float32) -> Digits:
    """The 1797 handwritten digits of 8x8 pixels that scikit-learn ships (Alpaydin and Kaynak 1998), 0..16 mapped to
    [-1, 1].

    Raises ImportError, naming the extra to install, without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() needs scikit-learn: pip install 'halfbridge[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=dtype, device="cpu").reshape(-1, 1, 8, 8) / 8.0 - 1.0
    return Digits(images, torch.as_tensor(labels, dtype=torch.int64, device="cpu"))


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
